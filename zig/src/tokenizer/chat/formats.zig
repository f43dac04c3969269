//! The chat formats, each described once. Ids, loss, Jinja, Go template and stops are all read from here.
//!
//! `say` is literal text, `put` what somebody wrote, `trained` what the model learns to write itself, `choose` takes
//! the first `when` whose conditions hold. A format's page is docs/formats/chat.md.

const description = @import("description.zig");

const Arm = description.Arm;
const Condition = description.Condition;
const Description = description.Description;
const Flag = description.Flag;
const Node = description.Node;
const Value = description.Value;

fn say(comptime text: []const u8) Node {
    return .{ .text = text };
}

fn put(comptime value: Value) Node {
    return .{ .value = value };
}

fn trained(comptime nodes: []const Node) Node {
    return .{ .trained = nodes };
}

fn turns(comptime nodes: []const Node) Node {
    return .{ .turns = nodes };
}

fn calls(comptime nodes: []const Node) Node {
    return .{ .calls = nodes };
}

fn tools(comptime nodes: []const Node) Node {
    return .{ .tools = nodes };
}

fn choose(comptime arms: []const Arm) Node {
    return .{ .choose = arms };
}

fn when(comptime flags: []const Condition, comptime nodes: []const Node) Arm {
    return .{ .when = flags, .then = nodes };
}

fn otherwise(comptime nodes: []const Node) Arm {
    return .{ .then = nodes };
}

fn is(comptime flag: Flag) Condition {
    return .{ .flag = flag };
}

fn no(comptime flag: Flag) Condition {
    return .{ .flag = flag, .is = false };
}

// ---- The guide's own ----

pub const abbey: Description = .{
    .about = "lines of the Abbey guide: [EMOTION: x], User: …, Abbey: …; the tokenizer's end token closes a turn",
    .end = null,
    .stops = &.{ "\nUser:", "\n[EMOTION:" },
    .leading_space = true,
    .body = &.{
        turns(&.{choose(&.{
            when(&.{is(.assistant)}, &.{ say("Abbey:"), trained(&.{ say(" "), put(.content), .end }) }),
            when(&.{is(.user)}, &.{
                choose(&.{when(&.{is(.emotion)}, &.{ say("[EMOTION: "), put(.emotion), say("]\n") })}),
                say("User: "),
                put(.content),
                say("\n"),
            }),
            otherwise(&.{ say("System: "), put(.content), say("\n") }),
        })}),
        choose(&.{when(&.{is(.generate)}, &.{say("Abbey:")})}),
    },
};

// ---- ChatML and its children ----

const chatml_controls: []const []const u8 = &.{ "<|im_start|>", "<|im_end|>" };
const chatml_stops: []const []const u8 = &.{ "<|im_end|>", "<|endoftext|>" };

const chatml_turn: []const Node = &.{
    say("<|im_start|>"),
    put(.role),
    say("\n"),
    trained(&.{ put(.content), say("<|im_end|>") }),
    say("\n"),
};

const chatml_generate = choose(&.{when(&.{is(.generate)}, &.{say("<|im_start|>assistant\n")})});

/// The default system text, then turns as they are.
const chatml_plain: []const Node = &.{
    choose(&.{
        when(&.{is(.opens_with_system)}, &.{}),
        when(&.{is(.default_system)}, &.{ say("<|im_start|>system\n"), put(.default_system), say("<|im_end|>\n") }),
    }),
    turns(chatml_turn),
    chatml_generate,
};

/// The same with tools: offered in the system turn, called and answered between tags (the Hermes way). `before` is what
/// an answer begins with, `text` its content.
fn chatmlTools(comptime before: []const Node, comptime text: Node) []const Node {
    return &.{
        choose(&.{
            when(&.{is(.tools)}, &.{
                say("<|im_start|>system\n"),
                choose(&.{
                    when(&.{is(.opens_with_system)}, &.{ put(.opening), say("\n\n") }),
                    when(&.{is(.default_system)}, &.{ put(.default_system), say("\n\n") }),
                }),
                say("# Tools\n\nYou may call one or more functions to assist with the user query.\n\n" ++
                    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"),
                tools(&.{ say("\n"), put(.tool_json) }),
                say("\n</tools>\n\nFor each function call, return a json object with function name and arguments within " ++
                    "<tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n"),
            }),
            when(&.{is(.opens_with_system)}, &.{ say("<|im_start|>system\n"), put(.opening), say("<|im_end|>\n") }),
            when(&.{is(.default_system)}, &.{ say("<|im_start|>system\n"), put(.default_system), say("<|im_end|>\n") }),
        }),
        turns(&.{choose(&.{
            when(&.{ is(.first), is(.opens_with_system) }, &.{}),
            when(&.{is(.tool)}, &.{
                choose(&.{when(&.{no(.after_tool)}, &.{say("<|im_start|>user")})}),
                say("\n<tool_response>\n"),
                put(.content),
                say("\n</tool_response>"),
                choose(&.{when(&.{no(.before_tool)}, &.{say("<|im_end|>\n")})}),
            }),
            when(&.{is(.calls)}, &.{
                say("<|im_start|>assistant\n"),
                trained(before ++ .{
                    choose(&.{when(&.{is(.content)}, &.{text})}),
                    calls(&.{
                        choose(&.{
                            when(&.{is(.content)}, &.{say("\n")}),
                            when(&.{no(.first_call)}, &.{say("\n")}),
                        }),
                        say("<tool_call>\n{\"name\": \""),
                        put(.call_name),
                        say("\", \"arguments\": "),
                        put(.call_arguments),
                        say("}\n</tool_call>"),
                    }),
                    say("<|im_end|>"),
                }),
                say("\n"),
            }),
            when(&.{is(.assistant)}, &.{ say("<|im_start|>assistant\n"), trained(before ++ .{ text, say("<|im_end|>") }), say("\n") }),
            otherwise(chatml_turn),
        })}),
        chatml_generate,
    };
}

const chatml_tools = chatmlTools(&.{}, put(.content));

const tool_tags: []const []const u8 = &.{ "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>" };

pub const chatml: Description = .{
    .about = "<|im_start|>role … <|im_end|>; no system text of its own; tools as Hermes writes them",
    .controls = chatml_controls,
    .optional = tool_tags,
    .end = "<|im_end|>",
    .stops = chatml_stops,
    .tools = true,
    .body = chatml_tools,
};

pub const qwen: Description = .{
    .about = "Qwen2.5: chatml with its system text and tools",
    .controls = chatml_controls,
    .optional = tool_tags,
    .end = "<|im_end|>",
    .stops = chatml_stops,
    .default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    .tools = true,
    .body = chatml_tools,
};

pub const qwen2: Description = .{
    .about = "Qwen2: chatml with its older system text, no tools",
    .controls = chatml_controls,
    .end = "<|im_end|>",
    .stops = chatml_stops,
    .default_system = "You are a helpful assistant.",
    .body = chatml_plain,
};

/// Reasoning stays behind the user's last turn only; the last answer always has its place.
const qwen3_reasoning: []const Node = &.{choose(&.{
    when(&.{no(.after_newest_user)}, &.{}),
    when(&.{is(.last)}, qwen3_thought),
    when(&.{is(.thinking)}, qwen3_thought),
})};
const qwen3_thought: []const Node = &.{ say("<think>\n"), put(.thinking_stripped), say("\n</think>\n\n") };
const qwen3_text = choose(&.{
    when(&.{no(.after_newest_user)}, &.{put(.content)}),
    when(&.{is(.last)}, &.{put(.content_from_text)}),
    when(&.{is(.thinking)}, &.{put(.content_from_text)}),
    otherwise(&.{put(.content)}),
});

pub const qwen3: Description = .{
    .about = "Qwen3: chatml with tools, and reasoning between <think> tags behind the user's last turn",
    .controls = chatml_controls,
    .optional = tool_tags ++ .{ "<think>", "</think>" },
    .end = "<|im_end|>",
    .stops = chatml_stops,
    .tools = true,
    .thinking = true,
    .beside_call = .text_and_thinking,
    .body = chatmlTools(qwen3_reasoning, qwen3_text),
};

pub const smollm: Description = .{
    .about = "SmolLM2: chatml with its system text, no tools",
    .controls = chatml_controls,
    .end = "<|im_end|>",
    .stops = chatml_stops,
    .default_system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    .body = chatml_plain,
};

// ---- Llama ----

const llama_controls: []const []const u8 = &.{ "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>" };
const llama_stops: []const []const u8 = &.{ "<|eot_id|>", "<|end_of_text|>" };
const llama_generate = choose(&.{when(&.{is(.generate)}, &.{say("<|start_header_id|>assistant<|end_header_id|>\n\n")})});

pub const llama3: Description = .{
    .about = "Llama 3: role headers, trimmed bodies, <|eot_id|>; the begin token first; no tools",
    .controls = llama_controls,
    .end = "<|eot_id|>",
    .stops = llama_stops,
    .body = &.{
        .begin,
        turns(&.{
            say("<|start_header_id|>"),
            put(.role),
            say("<|end_header_id|>\n\n"),
            trained(&.{ put(.content_trimmed), say("<|eot_id|>") }),
        }),
        llama_generate,
    },
};

/// Llama 3.1 and later: a dated system turn in any case, tools in the first user turn, calls as JSON.
fn llama31(comptime about: []const u8, comptime date: Node) Description {
    return .{
        .about = about,
        .controls = llama_controls,
        .end = "<|eot_id|>",
        .stops = llama_stops ++ .{"<|eom_id|>"},
        .tools = true,
        .single_call = true,
        .beside_call = .nothing,
        .body = &.{
            .begin,
            say("<|start_header_id|>system<|end_header_id|>\n\n"),
            choose(&.{when(&.{is(.tools)}, &.{say("Environment: ipython\n")})}),
            say("Cutting Knowledge Date: December 2023\nToday Date: "),
            date,
            say("\n\n"),
            choose(&.{when(&.{is(.opens_with_system)}, &.{put(.opening_trimmed)})}),
            say("<|eot_id|>"),
            turns(&.{choose(&.{
                when(&.{ is(.first), is(.opens_with_system) }, &.{}),
                when(&.{is(.calls)}, &.{
                    say("<|start_header_id|>assistant<|end_header_id|>\n\n"),
                    trained(&.{
                        calls(&.{ say("{\"name\": \""), put(.call_name), say("\", \"parameters\": "), put(.call_arguments), say("}") }),
                        say("<|eot_id|>"),
                    }),
                }),
                when(&.{is(.tool)}, &.{ say("<|start_header_id|>ipython<|end_header_id|>\n\n"), put(.content_json), say("<|eot_id|>") }),
                otherwise(&.{
                    say("<|start_header_id|>"),
                    put(.role),
                    say("<|end_header_id|>\n\n"),
                    choose(&.{when(&.{ is(.tools), is(.opening_turn) }, &.{
                        say("Given the following functions, please respond with a JSON for a function call with its proper " ++
                            "arguments that best answers the given prompt.\n\nRespond in the format {\"name\": function name, " ++
                            "\"parameters\": dictionary of argument name and its value}.Do not use variables.\n\n"),
                        tools(&.{ put(.tool_json_indented), say("\n\n") }),
                    })}),
                    trained(&.{ put(.content_trimmed), say("<|eot_id|>") }),
                }),
            })}),
            llama_generate,
        },
    };
}

pub const llama3_1 = llama31("Llama 3.1 and 3.3: llama3 with a system turn that names 26 Jul 2024, and tools", say("26 Jul 2024"));
pub const llama3_2 = llama31("Llama 3.2: llama3 with a system turn that names today, and tools", put(.date_in_words));

// ---- Mistral ----

const inst: []const []const u8 = &.{ "[INST]", "[/INST]" };

pub const mistral: Description = .{
    .about = "Mistral 7B v0.1, v0.2 and their like: [INST] … [/INST] …</s>, with spaces; the system text goes before the next user text",
    .optional = inst,
    .end = null,
    .stops = &.{"</s>"},
    .leading_space = true,
    .late_system = false,
    .body = &.{
        .begin,
        turns(&.{choose(&.{
            when(&.{is(.system)}, &.{.hold}),
            when(&.{is(.user)}, &.{
                say("[INST] "),
                choose(&.{when(&.{is(.held)}, &.{ put(.held), say("\n\n") })}),
                put(.content),
                say(" [/INST]"),
            }),
            otherwise(&.{trained(&.{ say(" "), put(.content), .end })}),
        })}),
    },
};

/// The third tokenizer version: the system text stands in the last user turn, tags are control tokens.
fn mistralV3(comptime about: []const u8, comptime space: []const u8) Description {
    return .{
        .about = about,
        .controls = inst,
        .end = null,
        .stops = &.{"</s>"},
        .leading_space = space.len > 0,
        .late_system = false,
        .body = &.{
            .begin,
            turns(&.{choose(&.{
                when(&.{is(.system)}, &.{}),
                when(&.{is(.user)}, &.{
                    say("[INST]" ++ space),
                    choose(&.{when(&.{ is(.newest_user), is(.opens_with_system) }, &.{ put(.opening), say("\n\n") })}),
                    put(.content),
                    say("[/INST]"),
                }),
                otherwise(&.{trained(&.{ say(space), put(.content), .end })}),
            })}),
        },
    };
}

pub const mistral_v3 = mistralV3("Mistral 7B v0.3: [INST] and [/INST] are control tokens, one space after each", " ");
pub const mistral_v3_tekken = mistralV3("Mistral Nemo: the same without spaces", "");

pub const mistral_v7_tekken: Description = .{
    .about = "Mistral Small 3 and later: [SYSTEM_PROMPT], [INST], no spaces",
    .controls = &.{ "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]" },
    .end = null,
    .stops = &.{"</s>"},
    .body = &.{
        .begin,
        turns(&.{choose(&.{
            when(&.{is(.system)}, &.{ say("[SYSTEM_PROMPT]"), put(.content), say("[/SYSTEM_PROMPT]") }),
            when(&.{is(.user)}, &.{ say("[INST]"), put(.content), say("[/INST]") }),
            otherwise(&.{trained(&.{ put(.content), .end })}),
        })}),
    },
};

// ---- gpt-oss ----

const analysis: []const Node = &.{ say("<|channel|>analysis<|message|>"), put(.thinking), say("<|end|><|start|>assistant") };

pub const harmony: Description = .{
    .about = "gpt-oss: channels analysis, commentary and final; <|return|> ends an answer, <|call|> a tool call",
    .controls = &.{ "<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>" },
    .end = "<|return|>",
    .past_end = "<|end|>",
    .stops = &.{ "<|return|>", "<|call|>" },
    .tools = true,
    .single_call = true,
    .beside_call = .text_or_thinking,
    .thinking = true,
    .late_system = false,
    .body = &.{
        say("<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n" ++
            "Knowledge cutoff: 2024-06\nCurrent date: "),
        put(.date),
        say("\n\nReasoning: "),
        put(.reasoning),
        say("\n\n" ++
            "# Valid channels: analysis, commentary, final. Channel must be included for every message."),
        choose(&.{when(&.{is(.tools)}, &.{say("\nCalls to these tools must go to the commentary channel: 'functions'.")})}),
        say("<|end|>"),
        choose(&.{
            when(&.{ is(.opens_with_system), is(.opening) }, &.{
                say("<|start|>developer<|message|># Instructions\n\n"),
                put(.opening),
                say("\n\n"),
                choose(&.{when(&.{is(.tools)}, &.{ say("# Tools\n\n"), put(.tools_typescript) })}),
                say("<|end|>"),
            }),
            when(&.{is(.tools)}, &.{ say("<|start|>developer<|message|># Tools\n\n"), put(.tools_typescript), say("<|end|>") }),
        }),
        turns(&.{choose(&.{
            when(&.{is(.system)}, &.{}),
            when(&.{is(.user)}, &.{ say("<|start|>user<|message|>"), put(.content), say("<|end|>") }),
            when(&.{is(.tool)}, &.{
                say("<|start|>functions."),
                put(.called),
                say(" to=assistant<|channel|>commentary<|message|>"),
                put(.content_json),
                say("<|end|>"),
            }),
            // Reasoning before a call stays only while no answer has been given.
            when(&.{is(.calls)}, &.{
                say("<|start|>assistant"),
                trained(&.{
                    choose(&.{
                        when(&.{is(.answered)}, &.{}),
                        when(&.{is(.thinking)}, analysis),
                        when(&.{is(.content)}, &.{ say("<|channel|>analysis<|message|>"), put(.content), say("<|end|><|start|>assistant") }),
                    }),
                    calls(&.{ say(" to=functions."), put(.call_name), say("<|channel|>commentary json<|message|>"), put(.call_arguments), say("<|call|>") }),
                }),
            }),
            when(&.{ is(.last), no(.generate) }, &.{
                say("<|start|>assistant"),
                trained(&.{
                    choose(&.{when(&.{is(.thinking)}, analysis)}),
                    say("<|channel|>final<|message|>"),
                    put(.content),
                    say("<|return|>"),
                }),
            }),
            // In the history the end is written for the model, never by it: teaching it there would teach it not to stop.
            otherwise(&.{ say("<|start|>assistant"), trained(&.{ say("<|channel|>final<|message|>"), put(.content) }), say("<|end|>") }),
        })}),
        choose(&.{when(&.{is(.generate)}, &.{say("<|start|>assistant")})}),
    },
};
