//! What `abi lint` can find: one stable code each, how bad it is, what it does in which program, and what to do next.
//!
//! The codes are part of the program's interface: tests and people's scripts name them, docs/lint.md lists them.
//! "refuses" and "aborts" speak of llama.cpp of August 2026 and of Ollama, which runs models through it.
//! Does not know: files, how anything is found.

const std = @import("std");

pub const Severity = enum {
    /// Some program refuses the file or dies of it.
    @"error",
    /// The file loads and does something wrong.
    warning,
    /// Worth knowing; nothing goes wrong by itself.
    note,
};

/// Whether `--fix` mends what the code names.
pub const Mends = enum {
    no,
    /// Where what is right follows from the rest of the file.
    sometimes,
    yes,
};

pub const Rule = struct {
    severity: Severity,
    /// What is wrong, for lists; findings say it with names and values.
    summary: []const u8,
    /// What happens, and in which program.
    effect: []const u8,
    /// What a person does about it when `--fix` does not.
    next: []const u8,
    mends: Mends,
};

pub const Code = enum {
    alignment,
    alignment_small,
    key_name,
    key_duplicate,
    tensor_name,
    tensor_duplicate,
    tensor_dimension,
    tensor_offset,
    tensor_cut,
    trailing_bytes,
    split_incomplete,
    file_empty,
    architecture_missing,
    architecture_unknown,
    architecture_unchecked,
    abi_layout,
    ollama_layout,
    key_missing,
    key_type,
    key_type_unusual,
    key_value,
    rope_scaling,
    tensor_missing,
    output_missing,
    bias_missing,
    tensor_unexpected,
    tensor_shape,
    tensor_type,
    matrix_type,
    adapter,
    numbers_broken,
    file_type,
    file_type_missing,
    quantization_version,
    vocab_size,
    tokenizer_missing,
    tokenizer_model,
    pre_missing,
    pre_unknown,
    vocab_length,
    token_duplicate,
    token_empty,
    token_utf8,
    token_type_length,
    token_type_value,
    scores_length,
    scores_missing,
    merges_missing,
    merges_broken,
    special_id_range,
    eos_missing,
    eot_missing,
    bos_missing,
    template_missing,
    template_stop,
    template_tokens,
    template_markers,
    template_bos,
    abi_refuses,

    /// `key-type`: the name people see.
    pub fn text(self: Code) []const u8 {
        return texts[@backingInt(self)];
    }

    pub fn rule(self: Code) Rule {
        return ruleOf(self);
    }
};

const texts = blk: {
    const fields = @typeInfo(Code).@"enum".field_names;
    var out: [fields.len][]const u8 = undefined;
    for (fields, &out) |field, *text| {
        var name: [field.len]u8 = field[0..field.len].*;
        for (&name) |*c| if (c.* == '_') {
            c.* = '-';
        };
        const final = name;
        text.* = &final;
    }
    break :blk out;
};

const refuses = "llama.cpp and Ollama refuse the file, and so does abi.";
const export_again = "Export the model again.";

fn ruleOf(code: Code) Rule {
    return switch (code) {
        .alignment => .{
            .severity = .@"error",
            .summary = "general.alignment is no u32, zero, no power of two, or above 1 MiB",
            .effect = "llama.cpp and Ollama refuse the file, but for powers of two above 1 MiB; abi refuses those too.",
            .next = "Pass --fix: the file is laid out with the default of 32.",
            .mends = .yes,
        },
        .alignment_small => .{
            .severity = .@"error",
            .summary = "general.alignment is below 32",
            .effect = "llama.cpp maps the file and aborts where tensors do not begin at multiples of 32; abi reads it.",
            .next = "Pass --fix: the file is laid out with the default of 32.",
            .mends = .yes,
        },
        .key_name => .{
            .severity = .@"error",
            .summary = "a key without a name, with one of more than 65535 bytes, or one that is not UTF-8",
            .effect = "llama.cpp and Ollama refuse a key without a name; abi refuses all three.",
            .next = "Pass --fix: the key is left out.",
            .mends = .yes,
        },
        .key_duplicate => .{
            .severity = .@"error",
            .summary = "a key appears twice",
            .effect = refuses,
            .next = "Pass --fix: the first one stays.",
            .mends = .yes,
        },
        .tensor_name => .{
            .severity = .@"error",
            .summary = "a tensor's name is empty, has 64 bytes or more, a zero byte, or is not UTF-8",
            .effect = refuses,
            .next = export_again,
            .mends = .no,
        },
        .tensor_duplicate => .{
            .severity = .@"error",
            .summary = "two tensors have one name",
            .effect = refuses,
            .next = export_again,
            .mends = .no,
        },
        .tensor_dimension => .{
            .severity = .@"error",
            .summary = "a dimension of a tensor is 0",
            .effect = "abi refuses the file; llama.cpp refuses it where the keys ask for another shape.",
            .next = export_again,
            .mends = .no,
        },
        .tensor_offset => .{
            .severity = .@"error",
            .summary = "tensor data with gaps, out of order, or not where the sizes before it lead",
            .effect = refuses,
            .next = "Pass --fix: the data is laid out again. Tensors that share bytes cannot be mended; export again.",
            .mends = .sometimes,
        },
        .tensor_cut => .{
            .severity = .@"error",
            .summary = "a tensor's data lies beyond the end of the file",
            .effect = refuses,
            .next = "Fetch or export the file again; its end is missing.",
            .mends = .no,
        },
        .trailing_bytes => .{
            .severity = .@"error",
            .summary = "bytes after the last tensor",
            .effect = "abi refuses the file; llama.cpp and Ollama do not look there.",
            .next = "Pass --fix: they are left out.",
            .mends = .yes,
        },
        .split_incomplete => .{
            .severity = .@"error",
            .summary = "parts of a split model are missing or do not belong together",
            .effect = refuses,
            .next = "Bring all parts into one folder under the names they were made with.",
            .mends = .no,
        },
        .file_empty => .{
            .severity = .note,
            .summary = "the file has no tensors",
            .effect = "Programs that only read a vocabulary take it; as a model every program refuses it.",
            .next = "Nothing, if it is meant as a vocabulary.",
            .mends = .no,
        },
        .architecture_missing => .{
            .severity = .@"error",
            .summary = "general.architecture is missing",
            .effect = refuses,
            .next = export_again,
            .mends = .no,
        },
        .architecture_unknown => .{
            .severity = .@"error",
            .summary = "the architecture is none that llama.cpp has",
            .effect = refuses,
            .next = "Export the model again, or fetch a newer llama.cpp.",
            .mends = .no,
        },
        .architecture_unchecked => .{
            .severity = .note,
            .summary = "the architecture is none of those checked here (llama, qwen2, qwen3, smollm3, gpt-oss)",
            .effect = "Its keys and tensors are not compared with a table; the container and the tokenizer are checked.",
            .next = "Nothing.",
            .mends = .no,
        },
        .abi_layout => .{
            .severity = .@"error",
            .summary = "the ABI framework's first writer: dimensions listed as rows, columns, and q and k in another row order",
            .effect = "llama.cpp and Ollama refuse the shapes; abi reads the file.",
            .next = "Pass --fix: dimensions are turned round and rows of q and k put in order.",
            .mends = .yes,
        },
        .ollama_layout => .{
            .severity = .@"error",
            .summary = "gpt-oss as early Ollama stored it: architecture gptoss, other names, fused or type-4 tensors",
            .effect = "llama.cpp refuses the file, and so do today's Ollama (for type 4) and abi.",
            .next = "Pass --fix: names, keys and blocks are translated without rounding.",
            .mends = .yes,
        },
        .key_missing => .{
            .severity = .@"error",
            .summary = "a key that the architecture needs is missing",
            .effect = refuses,
            .next = "Pass --fix where the tensors say the value; else export the model again.",
            .mends = .sometimes,
        },
        .key_type => .{
            .severity = .@"error",
            .summary = "a key is stored in another type than the one it is read as",
            .effect = "Whoever reads the key refuses the file: llama.cpp, Ollama and abi convert nothing.",
            .next = "Pass --fix: the value is stored in the right type where it fits.",
            .mends = .sometimes,
        },
        .key_type_unusual => .{
            .severity = .note,
            .summary = "a key that only people read is stored in another type than usual",
            .effect = "Programs that list it may show something else.",
            .next = "Pass --fix: the value is stored in the usual type where it fits.",
            .mends = .sometimes,
        },
        .key_value => .{
            .severity = .@"error",
            .summary = "a key's value cannot be: zero layers, heads that do not divide, experts used beyond those there",
            .effect = "llama.cpp aborts or divides by zero; abi refuses the file.",
            .next = export_again,
            .mends = .no,
        },
        .rope_scaling => .{
            .severity = .warning,
            .summary = "rotary scaling is missing or contradicts itself",
            .effect = "The file loads, and answers get worse with every token.",
            .next = export_again,
            .mends = .no,
        },
        .tensor_missing => .{
            .severity = .@"error",
            .summary = "a tensor that the architecture needs is missing",
            .effect = refuses,
            .next = export_again,
            .mends = .no,
        },
        .output_missing => .{
            .severity = .@"error",
            .summary = "gpt-oss without output.weight: this architecture has no tied head",
            .effect = "llama.cpp and Ollama refuse the file.",
            .next = "Pass --fix: the embedding is written a second time, as output.weight.",
            .mends = .yes,
        },
        .bias_missing => .{
            .severity = .warning,
            .summary = "qwen2 without biases of q, k and v",
            .effect = "llama.cpp and Ollama load it without a word and compute something else; abi refuses it.",
            .next = "Export the model again, with its biases.",
            .mends = .no,
        },
        .tensor_unexpected => .{
            .severity = .@"error",
            .summary = "a tensor that the architecture does not have",
            .effect = "llama.cpp and Ollama refuse the file (\"wrong number of tensors\"), and so does abi.",
            .next = "Export the model again without it.",
            .mends = .no,
        },
        .tensor_shape => .{
            .severity = .@"error",
            .summary = "a tensor has other dimensions than the keys ask for",
            .effect = refuses,
            .next = export_again,
            .mends = .no,
        },
        .tensor_type => .{
            .severity = .@"error",
            .summary = "a norm, a bias or sinks stored as something else than f32",
            .effect = "llama.cpp and Ollama load the file and abort at the first token; abi reads floats.",
            .next = "Pass --fix: f16, bf16 and f64 are stored as f32, number for number. Blocks cannot be mended; export again.",
            .mends = .sometimes,
        },
        .matrix_type => .{
            .severity = .@"error",
            .summary = "a matrix stored as whole numbers or as f64",
            .effect = "llama.cpp and Ollama abort when they compute with it, and abi refuses it.",
            .next = export_again,
            .mends = .no,
        },
        .adapter => .{
            .severity = .@"error",
            .summary = "a LoRA adapter that is not complete: its kind, its scale, or one half of a pair",
            .effect = "llama.cpp and Ollama refuse the adapter.",
            .next = "Export the adapter again.",
            .mends = .no,
        },
        .numbers_broken => .{
            .severity = .warning,
            .summary = "NaN or infinity among the weights or the scales of their blocks, or MXFP4's exponent 255",
            .effect = "The file loads, and every answer is noise or empty; abi refuses it when it trains.",
            .next = "Find the checkpoint where the numbers broke and export the one before it.",
            .mends = .no,
        },
        .file_type => .{
            .severity = .warning,
            .summary = "general.file_type names a type that the tensors do not have",
            .effect = "People are shown the wrong type, and Ollama quantises by this key: from a file that says f16 and is not it fails.",
            .next = "Pass --fix: the type that most of the matrices have is written.",
            .mends = .yes,
        },
        .file_type_missing => .{
            .severity = .note,
            .summary = "general.file_type is missing",
            .effect = "llama.cpp guesses it; Ollama shows the type as unknown.",
            .next = "Pass --fix.",
            .mends = .yes,
        },
        .quantization_version => .{
            .severity = .note,
            .summary = "tensors are stored in blocks, and general.quantization_version is missing or not 2",
            .effect = "Programs that check it take the blocks for those of another version.",
            .next = "Pass --fix.",
            .mends = .yes,
        },
        .vocab_size => .{
            .severity = .@"error",
            .summary = "the vocabulary size that a key gives is not the number of the embedding's rows",
            .effect = "abi refuses the file; llama.cpp goes by the embedding, other programs by the key.",
            .next = "Pass --fix: the key says what the embedding has.",
            .mends = .yes,
        },
        .tokenizer_missing => .{
            .severity = .@"error",
            .summary = "the file has no tokenizer",
            .effect = "llama.cpp and Ollama refuse the file; abi runs it on token ids only.",
            .next = "Export the model again together with its tokenizer.",
            .mends = .no,
        },
        .tokenizer_model => .{
            .severity = .@"error",
            .summary = "tokenizer.ggml.model is a kind that nobody knows",
            .effect = "llama.cpp and Ollama refuse the file; abi runs it on token ids only.",
            .next = "Export the model again with a tokenizer of kind gpt2 or llama.",
            .mends = .no,
        },
        .pre_missing => .{
            .severity = .warning,
            .summary = "tokenizer.ggml.pre is missing from a byte-level tokenizer",
            .effect = "llama.cpp and abi cut text by the rule `default`, which is the wrong one for most models: other ids than in training.",
            .next = "Pass --fix OUT --pre NAME with the model's rule, as qwen2, llama-bpe, smollm or gpt-4o.",
            .mends = .sometimes,
        },
        .pre_unknown => .{
            .severity = .@"error",
            .summary = "tokenizer.ggml.pre is a rule that llama.cpp does not have",
            .effect = "llama.cpp and Ollama refuse the file (\"unknown pre-tokenizer type\"); abi runs it on token ids only.",
            .next = "Pass --fix OUT --pre NAME with the model's rule, or fetch a newer llama.cpp.",
            .mends = .sometimes,
        },
        .vocab_length => .{
            .severity = .@"error",
            .summary = "the list of tokens has another length than the embedding has rows",
            .effect = refuses,
            .next = "Pass --fix where tokens are too few: [PAD…] tokens fill up. Where they are too many, export again.",
            .mends = .sometimes,
        },
        .token_duplicate => .{
            .severity = .@"error",
            .summary = "two tokens have one text",
            .effect = "llama.cpp and Ollama abort; abi refuses the tokenizer.",
            .next = "Pass --fix: fillers get a text of their own. Two real tokens cannot be told apart; export again.",
            .mends = .sometimes,
        },
        .token_empty => .{
            .severity = .note,
            .summary = "a token without a text",
            .effect = "llama.cpp calls it [EMPTY_id].",
            .next = "Nothing, if the model never writes it.",
            .mends = .no,
        },
        .token_utf8 => .{
            .severity = .warning,
            .summary = "a token's text is not UTF-8",
            .effect = "No text leads to the token, and PyPI gguf cannot list the vocabulary.",
            .next = "Export the model again; bytes are written as the letters of a byte-level alphabet.",
            .mends = .no,
        },
        .token_type_length => .{
            .severity = .@"error",
            .summary = "tokenizer.ggml.token_type is shorter than the list of tokens",
            .effect = refuses,
            .next = "Pass --fix: the rest counts as normal tokens.",
            .mends = .yes,
        },
        .token_type_value => .{
            .severity = .warning,
            .summary = "tokenizer.ggml.token_type has a number that is no kind of token",
            .effect = "llama.cpp takes it for undefined: special tokens are not found in text. abi refuses the tokenizer.",
            .next = "Pass --fix: it counts as a normal token.",
            .mends = .yes,
        },
        .scores_length => .{
            .severity = .@"error",
            .summary = "tokenizer.ggml.scores is shorter than the list of tokens",
            .effect = refuses,
            .next = "Pass --fix where no real token is concerned; else export again.",
            .mends = .sometimes,
        },
        .scores_missing => .{
            .severity = .warning,
            .summary = "a tokenizer of pieces without scores",
            .effect = "llama.cpp joins pieces in any order: other ids than in training.",
            .next = export_again,
            .mends = .no,
        },
        .merges_missing => .{
            .severity = .@"error",
            .summary = "a byte-level tokenizer without tokenizer.ggml.merges",
            .effect = "llama.cpp and Ollama refuse the file; abi runs it on token ids only.",
            .next = export_again,
            .mends = .no,
        },
        .merges_broken => .{
            .severity = .warning,
            .summary = "a merge is not two texts with a space between, or makes a token that is not there",
            .effect = "llama.cpp skips it without a word: other ids than in training. abi refuses the tokenizer.",
            .next = export_again,
            .mends = .no,
        },
        .special_id_range => .{
            .severity = .@"error",
            .summary = "the id of a special token is not below the vocabulary's size",
            .effect = "llama.cpp ignores it and takes its own default, so generation may never stop; abi refuses the file.",
            .next = "Pass --fix: the key is left out.",
            .mends = .yes,
        },
        .eos_missing => .{
            .severity = .warning,
            .summary = "tokenizer.ggml.eos_token_id is missing",
            .effect = "llama.cpp takes id 11 (byte-level) or 2 (pieces), whatever token that is; Ollama may not stop.",
            .next = "Pass --fix where a known end token is there; else export again.",
            .mends = .sometimes,
        },
        .eot_missing => .{
            .severity = .note,
            .summary = "the chat template ends turns with a token that is neither eos nor eot",
            .effect = "llama.cpp finds it by its text. Programs that read only the keys do not stop there.",
            .next = "Pass --fix: it becomes tokenizer.ggml.eot_token_id.",
            .mends = .yes,
        },
        .bos_missing => .{
            .severity = .warning,
            .summary = "texts begin with a bos token, and tokenizer.ggml.bos_token_id is missing",
            .effect = "llama.cpp puts id 11 (byte-level) before every text, whatever token that is.",
            .next = "Export the model again with its bos token, or with add_bos_token false.",
            .mends = .no,
        },
        .template_missing => .{
            .severity = .note,
            .summary = "tokenizer.chat_template is missing",
            .effect = "llama.cpp and Ollama talk to the model in ChatML or not at all, whatever it was trained on.",
            .next = "Nothing for a base model. Else export again with the chat template.",
            .mends = .no,
        },
        .template_stop => .{
            .severity = .warning,
            .summary = "the token that ends a turn in the chat template is not among those that end generation",
            .effect = "Answers run on into made-up turns in llama.cpp and Ollama.",
            .next = "Pass --fix: it becomes tokenizer.ggml.eot_token_id.",
            .mends = .yes,
        },
        .template_tokens => .{
            .severity = .warning,
            .summary = "the chat template writes a marker that the vocabulary has as an ordinary token",
            .effect = "llama.cpp and abi do not look for ordinary tokens in text: the marker is cut into pieces.",
            .next = "Pass --fix: it becomes a control token.",
            .mends = .yes,
        },
        .template_markers => .{
            .severity = .note,
            .summary = "the chat template writes a marker that is no token of the vocabulary",
            .effect = "The marker is cut into pieces, which is right only for a model that was trained so.",
            .next = "If the model was trained with the marker as one token, export it with the tokenizer of that training.",
            .mends = .no,
        },
        .template_bos => .{
            .severity = .note,
            .summary = "the chat template writes the bos token, and texts get one anyway",
            .effect = "llama.cpp and abi take one away. Programs that render the template and then tokenise begin with two.",
            .next = "Nothing for those programs; where you call a tokenizer yourself, leave its bos out.",
            .mends = .no,
        },
        .abi_refuses => .{
            .severity = .note,
            .summary = "abi does not read this file, for a reason of its own",
            .effect = "It may run elsewhere.",
            .next = "Read the reason; what abi computes is listed in docs/guide.md.",
            .mends = .no,
        },
    };
}

test "every code has its words, and none has those of another" {
    @setEvalBranchQuota(100_000);
    inline for (@typeInfo(Code).@"enum".field_names) |name| {
        const code = @field(Code, name);
        const r = code.rule();
        for ([_][]const u8{ r.summary, r.effect, r.next, code.text() }) |words| try std.testing.expect(words.len > 3);
        try std.testing.expect(std.ascii.isUpper(r.effect[0]) or std.mem.startsWith(u8, r.effect, "llama.cpp") or std.mem.startsWith(u8, r.effect, "abi"));
        // Who may mend says so, who cannot does not.
        const offers = std.mem.find(u8, r.next, "--fix") != null;
        try std.testing.expectEqual(r.mends != .no, offers);
        inline for (@typeInfo(Code).@"enum".field_names) |other| if (!std.mem.eql(u8, name, other))
            try std.testing.expect(!std.mem.eql(u8, r.summary, @field(Code, other).rule().summary));
    }
    try std.testing.expectEqualStrings("token-type-length", Code.token_type_length.text());
}
