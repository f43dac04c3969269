/* abi_train: the C interface of the native trainer, tokenizer, data loader and runner.
 *
 * This file is written by hand and is the source: the library is compared with it when it is compiled,
 * and the Python package is generated from the part between the cdef marks (plain declarations only).
 *
 * Rules that hold everywhere
 *   Status     Every function that can fail returns an abt_status. On failure its outputs are set to zero
 *              or NULL (unless it says otherwise) and abt_last_error() holds one sentence about it.
 *   Handles    Objects are named by 64-bit numbers, never by addresses. 0 is no object. A handle that was
 *              freed, never existed or names another kind of object is refused with a status. Every
 *              abt_<noun>_free takes 0 as "nothing to do" and refuses a second free.
 *   Lifetimes  A pointer handed out points into its object. It stays valid until that object is freed, or
 *              shorter where the function says so. An object used by another one (the data set of a batch
 *              iterator, the model of a trainer) lives until both are freed, in any order.
 *   Strings    `const char *` inputs are UTF-8 and end with a zero byte; text that may hold zero bytes is
 *              pointer + size. The library copies what it keeps.
 *   Text out   (buffer, capacity, needed): *needed gets the size in bytes without a closing zero. A buffer
 *              that is too small (NULL with capacity 0 is fine) gives ABT_STATUS_BUFFER_TOO_SMALL and
 *              writes nothing. No closing zero is written.
 *   Options    A struct of options begins with struct_size = sizeof of it, as the caller was compiled.
 *   Threads    Any thread may call. Two calls that would change one object at the same time: the second
 *              gets ABT_STATUS_BUSY. abt_trainer_request_stop may be called at any time. The library
 *              never calls back.
 *   Fork       Objects that own threads (trainer, generator) do not survive fork(); make them after it.
 */
#ifndef ABI_TRAIN_H
#define ABI_TRAIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* cdef:begin */

/* ---- Library ----------------------------------------------------------------------------------------
 * Who is there and what went wrong. Start by comparing abt_abi_version() with ABT_ABI_VERSION. */

enum { ABT_ABI_VERSION = 1 };

typedef enum abt_status {
    ABT_STATUS_OK = 0,
    ABT_STATUS_INVALID_ARGUMENT = 1,  /* a NULL pointer, a value out of range, a wrong struct_size */
    ABT_STATUS_STALE_HANDLE = 2,      /* freed before, or never made */
    ABT_STATUS_WRONG_HANDLE = 3,      /* names an object of another kind */
    ABT_STATUS_BUSY = 4,              /* another call is using the object */
    ABT_STATUS_BUFFER_TOO_SMALL = 5,  /* call again with *needed bytes (or elements) */
    ABT_STATUS_OUT_OF_MEMORY = 6,
    ABT_STATUS_CONFIG = 7,            /* a configuration field is wrong */
    ABT_STATUS_DATA = 8,              /* training data is wrong */
    ABT_STATUS_FORMAT = 9,            /* a model, tokenizer or GGUF file is wrong */
    ABT_STATUS_CHECKPOINT = 10,       /* a checkpoint is damaged or does not fit */
    ABT_STATUS_NUMERICS = 11,         /* NaN or infinity where a number must be */
    ABT_STATUS_NOT_FOUND = 12,        /* a file or folder does not exist */
    ABT_STATUS_IO = 13,               /* the system refused to read or write */
    ABT_STATUS_UNSUPPORTED = 14,      /* a sound request that this version cannot serve */
    ABT_STATUS_INTERNAL = 15          /* a fault of this library: please report it */
} abt_status;

/* The version, e.g. "0.1.0". Static. */
const char *abt_version(void);

/* The ABT_ABI_VERSION the library was compiled with. It changes when a declaration here changes meaning. */
uint32_t abt_abi_version(void);

/* The sentence for the last failure on the calling thread; empty if there was none. UTF-8, ends with a
 * zero byte. Valid until the next call on this thread. */
const char *abt_last_error(void);

/* JSON about this machine as the library sees it: {"architecture", "os", "mode", "level", "levels", "threads"}. */
abt_status abt_cpu_info_json(char *buffer, size_t capacity, size_t *needed);

/* ---- Configuration ----------------------------------------------------------------------------------
 * LlmTrainingConfig travels as a JSON object. One reader decides what is valid, for every language. */

/* The JSON schema: types, defaults, rules and other names of every field. */
abt_status abt_config_schema_json(char *buffer, size_t capacity, size_t *needed);

/* Reads a configuration, checks every rule and writes it back with every field under its own name. */
abt_status abt_config_validate_json(const char *config_json, char *buffer, size_t capacity, size_t *needed);

/* The learning rates of `count` optimizer steps from `first_step` (counted from 0). `total_steps` is the
 * length of the whole run; it matters when decay_steps is 0. rates: `count` doubles of the caller. */
abt_status abt_schedule_learning_rates(const char *config_json, uint64_t first_step, uint64_t total_steps,
                                       double *rates, size_t count);

/* ---- Instruction data -------------------------------------------------------------------------------
 * JSON lines with "instruction", optional "input", and "output". Other fields are ignored. */

typedef uint64_t abt_instructions;

typedef struct abt_instruction {
    const char *instruction;          /* UTF-8, not zero-ended; never empty */
    size_t instruction_size;
    const char *input;                /* NULL when there is none */
    size_t input_size;
    const char *output;               /* never empty */
    size_t output_size;
    uint64_t line;                    /* in the text, counted from 1 */
} abt_instruction;

/* Reads a whole text. With skip_invalid 0 the first bad line is an error that names it; otherwise bad
 * lines are left out and counted. The text is copied. */
abt_status abt_instructions_parse(const char *jsonl, size_t size, uint32_t skip_invalid,
                                  abt_instructions *instructions);
abt_status abt_instructions_free(abt_instructions instructions);

abt_status abt_instructions_count(abt_instructions instructions, uint64_t *count);

/* The index-th sample; its text lives as long as the object. */
abt_status abt_instructions_get(abt_instructions instructions, uint64_t index, abt_instruction *sample);

/* What was read and left out: {"samples", "blank_lines", "skipped", "defects": {kind: count},
 * "first": sentence or null}. */
abt_status abt_instructions_report_json(abt_instructions instructions, char *buffer, size_t capacity, size_t *needed);

/* ---- Tokenized data ---------------------------------------------------------------------------------
 * training_data.bin and the files beside it (docs/formats/token-bin.md), mapped and never read whole.
 * Two ways to walk it: `batches` gives the plain stream in ABI's layout; `loader` gives the micro-batches
 * the trainer reads, with rows, loss mask and padding. */

typedef uint64_t abt_dataset;
typedef uint64_t abt_batches;
typedef uint64_t abt_loader;

/* Opens at once whatever the size. `use_manifest` 0: the .bin alone, as a stream. */
abt_status abt_dataset_open(const char *path, uint32_t use_manifest, abt_dataset *dataset);
abt_status abt_dataset_free(abt_dataset dataset);

/* Tokens; rows, 0 for a stream; files, more than 1 only for a set of files that are one data set. Each
 * may be NULL. */
abt_status abt_dataset_size(abt_dataset dataset, uint64_t *tokens, uint64_t *rows, uint64_t *files);

/* Copies `count` tokens from `start` on, over the borders of files: ids, and 1 or 0 for whether the mask has
 * each in the loss. Either may be NULL. */
abt_status abt_dataset_read(abt_dataset dataset, uint64_t start, uint64_t count, uint32_t *ids, uint8_t *in_loss);

/* Copies where rows `first` to `first + count - 1` begin among all tokens; row number `rows` is the end of
 * the last. */
abt_status abt_dataset_read_row_starts(abt_dataset dataset, uint64_t first, uint64_t count, uint64_t *starts);

/* Makes the data set `path` of `count` files of the same folder, in this order: writes one manifest over them.
 * `path` itself must not be a file. */
abt_status abt_dataset_join(const char *path, const char *const *names, size_t count);

/* Says of the data set `path` that its files are being made: it cannot be opened before abt_dataset_join. */
abt_status abt_dataset_join_later(const char *path);

/* All ids in file order. Read-only: the memory is the file. A set of files has no such range: this and the
 * next two are then an ABT_STATUS_DATA; use the functions above. */
abt_status abt_dataset_tokens(abt_dataset dataset, const uint32_t **tokens, uint64_t *count);

/* The loss mask: bit i is bit i % 8 (lowest first) of byte i / 8. NULL and 0 when there is none: every
 * token is in the loss. */
abt_status abt_dataset_mask(abt_dataset dataset, const uint8_t **bytes, uint64_t *byte_count);

/* Row starts: row r is tokens[starts[r]] up to tokens[starts[r + 1]], so `count` is rows + 1. NULL and 0
 * for a stream. */
abt_status abt_dataset_row_starts(abt_dataset dataset, const uint64_t **starts, uint64_t *count);

/* The manifest as JSON; {} when there is none. */
abt_status abt_dataset_manifest_json(abt_dataset dataset, char *buffer, size_t capacity, size_t *needed);

/* Reads every id; an id at or above vocab_size is an ABT_STATUS_DATA that names it. */
abt_status abt_dataset_check_vocabulary(abt_dataset dataset, uint32_t vocab_size);

/* Reads every file that has a checksum in the manifest and compares. *compared: how many. */
abt_status abt_dataset_verify(abt_dataset dataset, uint64_t *compared);

/* The permutation of 0 .. count-1 that epoch `epoch` (from 0) follows; `order`: count values of the caller.
 * Both engines read rows in this order. */
abt_status abt_epoch_order(uint64_t count, uint32_t shuffle, uint64_t seed, uint64_t epoch, uint32_t *order);

enum {
    ABT_PACKING_NONE = 0,
    ABT_PACKING_BFD = 1,              /* rows share a sequence, best fit, the longest first; longer ones are cut */
    ABT_PACKING_BFD_SPLIT = 2,        /* the same, longer ones in pieces */
    ABT_PACKING_WRAPPED = 3           /* rows are one text, cut into full sequences */
};

typedef struct abt_batch_options {
    size_t struct_size;
    uint64_t batch_size;              /* sequences; the loader over preference data: pairs of them */
    uint64_t seq_len;                 /* tokens in each; the loader: at most */
    uint64_t seed;
    uint32_t shuffle;
    uint32_t packing;                 /* of the loader, an ABT_PACKING_ value */
} abt_batch_options;

/* input_ids == NULL: the epoch is over. */
typedef struct abt_batch {
    size_t struct_size;               /* set by the caller */
    const uint32_t *input_ids;        /* [rows * columns], row by row */
    const uint32_t *labels;           /* batches: the token after each input; loader: NULL */
    const int32_t *targets;           /* loader: the token to predict, -1 for none; batches: NULL */
    uint64_t rows;
    uint64_t columns;
    uint64_t index;                   /* which batch of the stream, or which micro-batch of the epoch */
    uint64_t target_count;            /* positions with a target */
    uint64_t token_count;             /* positions that are not padding */
    const uint32_t *positions;        /* packed rows: the position of each token in its row; else NULL */
    const uint32_t *first;            /* packed rows: the first position each token may see; else NULL */
} abt_batch;

/* The stream in ABI's layout. A batch's pointers stay valid as long as the iterator or the data set. */
abt_status abt_batches_open(abt_dataset dataset, const abt_batch_options *options, abt_batches *batches);
abt_status abt_batches_free(abt_batches batches);
abt_status abt_batches_count(abt_batches batches, uint64_t *count);
abt_status abt_batches_next(abt_batches batches, abt_batch *batch);
/* Starts the next epoch, in its own order. */
abt_status abt_batches_reset(abt_batches batches);

/* What the trainer reads. A batch's pointers are valid until the loader's next call. Over preference data a
 * batch has the better answers of its pairs first, then the worse ones; two rows that are no pair are an
 * ABT_STATUS_DATA. */
abt_status abt_loader_open(abt_dataset dataset, const abt_batch_options *options, abt_loader *loader);
abt_status abt_loader_free(abt_loader loader);
/* Micro-batches in an epoch; rows left out for having no target (preference data: pairs left out because
 * their prompt fills seq_len); rows that lost their end. */
abt_status abt_loader_count(abt_loader loader, uint64_t *micro_batches, uint64_t *dropped_rows, uint64_t *truncated_rows);
abt_status abt_loader_next(abt_loader loader, abt_batch *batch);
/* Goes to a micro-batch of an epoch, both counted from 0. */
abt_status abt_loader_seek(abt_loader loader, uint64_t epoch, uint64_t micro_batch);
/* The order of `epoch`: row numbers of the .idx, or batch numbers of a stream. Asks size, then fills;
 * capacity and needed count values. */
abt_status abt_loader_order(abt_loader loader, uint64_t epoch, uint32_t *order, size_t capacity, size_t *needed);

typedef uint64_t abt_writer;

typedef struct abt_writer_options {
    size_t struct_size;
    uint32_t rows;                    /* 1: each append is one row, and row starts are written */
    uint32_t mask;                    /* 1: a loss mask is written */
    uint32_t vocab_size;              /* ids at or above it are refused; 0: unknown */
    uint32_t has_seed;                /* 1: `seed` goes into the manifest */
    uint64_t seed;
    const char *tokenizer_hash;       /* this and the next three may be NULL */
    const char *format;
    const char *source;
    const char *license;
    uint32_t preference;              /* 1: rows come in twos, one prompt with its better and its worse answer;
                                         asks for rows and mask */
    uint32_t reserved;                /* 0 */
} abt_writer_options;

/* Writes a data set row by row in constant memory. Nothing appears under a final name before
 * abt_writer_finish; abt_writer_free before that leaves what was there. */
abt_status abt_writer_open(const char *path, const abt_writer_options *options, abt_writer *writer);
abt_status abt_writer_free(abt_writer writer);
/* in_loss: `count` bytes of 0 or 1, or NULL: all are in the loss. After a failure only free is allowed. */
abt_status abt_writer_append(abt_writer writer, const uint32_t *ids, size_t count, const uint8_t *in_loss);
/* Makes everything durable. The counts may be NULL. The writer is then done: free it. */
abt_status abt_writer_finish(abt_writer writer, uint64_t *tokens, uint64_t *rows, uint64_t *in_loss);

/* ---- Tokenizer --------------------------------------------------------------------------------------
 * Text to ids and back. Any number of threads may use one tokenizer. */

typedef uint64_t abt_tokenizer;

typedef struct abt_encode_options {
    size_t struct_size;
    int32_t add_bos;                  /* 1, 0, or -1: what the tokenizer's files say */
    int32_t add_eos;                  /* the same for the end token */
    uint32_t parse_special;           /* 1: control tokens written in the text become ids. Never for text
                                         a person wrote */
    uint32_t continues;               /* 1: the text goes on from earlier text: no leading space is added */
} abt_encode_options;

/* Opens a folder with tokenizer.json, or the tokenizer inside a .gguf file. */
abt_status abt_tokenizer_open(const char *path, abt_tokenizer *tokenizer);
abt_status abt_tokenizer_free(abt_tokenizer tokenizer);

/* {"vocab_size", "bos", "eos", "pad", "unk", "add_bos", "stops": [id], "controls": [text of each control token],
 * "chat_template"}; null where there is none. */
abt_status abt_tokenizer_info_json(abt_tokenizer tokenizer, char *buffer, size_t capacity, size_t *needed);

/* Ids of `size` bytes of text, which need not be UTF-8. `options` may be NULL: all as the files say.
 * capacity and needed count ids; size + 8 is always room enough. */
abt_status abt_tokenizer_encode(abt_tokenizer tokenizer, const char *text, size_t size,
                                const abt_encode_options *options, uint32_t *ids, size_t capacity, size_t *needed);

/* Ids of `count` texts, text i being text[bounds[i]] up to text[bounds[i + 1]], one after the other in `ids`: those of
 * text i from starts[i] up to starts[i + 1]. bounds and starts have count + 1 places. threads 0: one for each CPU; a
 * large text is shared out, and the ids are the same for any number. capacity and needed count ids; 8 a text more than
 * there are bytes is always room enough. */
abt_status abt_tokenizer_encode_batch(abt_tokenizer tokenizer, const char *text, const uint64_t *bounds, size_t count,
                                      const abt_encode_options *options, size_t threads, uint32_t *ids,
                                      size_t capacity, uint64_t *starts, size_t *needed);

/* The bytes of `count` ids. skip_special 1: control tokens give nothing. continues 1: a leading space stays.
 * An id beyond the vocabulary is refused. */
abt_status abt_tokenizer_decode(abt_tokenizer tokenizer, const uint32_t *ids, size_t count, uint32_t skip_special,
                                uint32_t continues, char *buffer, size_t capacity, size_t *needed);

/* The id of a token spelled as in the files. control_only 1: only if it is a control token.
 * ABT_STATUS_NOT_FOUND when there is none. */
abt_status abt_tokenizer_token_id(abt_tokenizer tokenizer, const char *text, size_t size, uint32_t control_only,
                                  uint32_t *id);

/* Which turns of a chat are in the loss. */
typedef enum abt_chat_loss {
    ABT_CHAT_LOSS_ASSISTANT = 0,      /* all assistant turns: what the model has to write, end tokens included */
    ABT_CHAT_LOSS_COMPLETION = 1,     /* the last assistant turn */
    ABT_CHAT_LOSS_EVERYTHING = 2      /* every token, whoever wrote it */
} abt_chat_loss;

/* How much the model is asked to think. */
typedef enum abt_reasoning {
    ABT_REASONING_MEDIUM = 0,
    ABT_REASONING_LOW = 1,
    ABT_REASONING_HIGH = 2
} abt_reasoning;

typedef struct abt_chat_options {
    size_t struct_size;
    uint32_t add_generation_prompt;   /* 1: end with the beginning of an assistant turn */
    uint32_t train;                   /* 1: make a loss mask, and refuse turns that teach nothing */
    uint32_t loss;                    /* ABT_CHAT_LOSS_... */
    size_t learn_from;                /* assistant turns before this one (from 0) are not in the loss */
    const char *date;                 /* 2025-06-28, for formats that name the day; NULL: today */
    uint32_t reasoning;               /* abt_reasoning, for formats that name it (harmony) */
} abt_chat_options;

/* A chat as ids and loss mask. messages_json: a list of {"role": "system"|"developer"|"user"|"assistant"|"tool",
 * "content": text, "thinking": text, "tool_calls": [{"id", "function": {"name", "arguments": object or text}}],
 * "name" and "tool_call_id" (of a tool's answer), "emotion": text (abbey only)}, or {"messages": that list, "tools":
 * [{"type": "function", "function": {"name", "description", "parameters"}}]}. format: a name of
 * abt_chat_format_json; NULL: what the tokenizer's chat template is, ABT_STATUS_UNSUPPORTED when it is exactly none.
 * `options` may be NULL. ids and loss_mask (0 or 1, may be NULL) have room for `capacity`; *needed gets the number
 * of ids. What people wrote never becomes a control token. A chat the format cannot write whole is refused with the
 * turn's number, from 1. */
abt_status abt_tokenizer_render_chat(abt_tokenizer tokenizer, const char *messages_json, const char *format,
                                     const abt_chat_options *options, uint32_t *ids, uint8_t *loss_mask,
                                     size_t capacity, size_t *needed);

/* The same chat as segments: {"segments": [{one of "text": text, "control": name, "begin": true, "end": true;
 * "role": of the turn, "in_loss": bool}]}. `format` must be given. */
abt_status abt_chat_segments_json(const char *messages_json, const char *format, const abt_chat_options *options,
                                  char *buffer, size_t capacity, size_t *needed);

/* Ids and loss mask of such a list of segments (role and in_loss may be missing), made by whoever renders a
 * template of his own. Text never becomes a control token; a control token the tokenizer lacks is refused. */
abt_status abt_tokenizer_encode_segments(abt_tokenizer tokenizer, const char *segments_json, uint32_t *ids,
                                         uint8_t *loss_mask, size_t capacity, size_t *needed);

/* {"name", "about", "jinja", "jinja_for_training": with generation markers, "go_template": [parts to be joined with
 * the end token's text], "stops": [text], "end": text or null (the tokenizer's end token), "past_end": what stands
 * behind an answer of the past in its place, or null, "controls": [text], "default_system": text or null, "begins_with_bos", "tools", "thinking"} of a chat format; with NULL
 * {"formats": [name]}. */
abt_status abt_chat_format_json(const char *format, char *buffer, size_t capacity, size_t *needed);

/* {"format": name or null, "exact": bool, "tools": bool}: the format a Jinja template is of, by its text, and
 * whether it is that with tools too. Not exact: only the nearest. */
abt_status abt_chat_detect_json(const char *template_text, char *buffer, size_t capacity, size_t *needed);

/* ---- Preparation ------------------------------------------------------------------------------------
 * Lines of JSON to token files, on all threads; the same bytes for any number of them. While abt_preparation_run
 * works on one thread, another may ask for progress and cancel. */

typedef uint64_t abt_preparation;

typedef struct abt_progress {
    uint64_t bytes_done;              /* of all source files; with what an earlier program had done */
    uint64_t bytes_before;            /* of them done by an earlier program */
    uint64_t bytes_total;
    uint64_t lines;                   /* read and not blank */
    uint64_t rows;
    uint64_t tokens;
    uint32_t counting;                /* 1: lines are being counted for the split; nothing is written yet */
    uint32_t reserved;
} abt_progress;

/* Opens the sources. options_json: an object with "sources" (list of paths), "output" (path ending in .bin), and
 * optional "eval_output", "eval_fraction", "seed", "chat_format" (a name, or null: what the
 * tokenizer's template exactly is; chats are refused when it is none), "date" (as 2025-06-28; default: today),
 * "tools" (false: rows that offer some are unusable),
 * "loss" (assistant, completion, all), "max_seq_len", "skip_invalid", "stream", "threads" (0: all CPUs), "continues",
 * "journal_ms", "block_bytes", and for the manifest "tokenizer_hash", "format_name", "source_note", "license",
 * "commercial_use", "notes". */
abt_status abt_preparation_open(abt_tokenizer tokenizer, const char *options_json, abt_preparation *preparation);
abt_status abt_preparation_free(abt_preparation preparation);
/* Does the work, once. A failure of the data leaves nothing behind; after a cancel or on a full disk what was done is
 * kept, and a later preparation with the same options and files goes on from there. */
abt_status abt_preparation_run(abt_preparation preparation);
/* At any time, from any thread. */
abt_status abt_preparation_progress(abt_preparation preparation, abt_progress *progress);
/* At any time, from any thread: run then soon fails. */
abt_status abt_preparation_cancel(abt_preparation preparation);
/* What was done: counts of rows and tokens, lines passed over and why. */
abt_status abt_preparation_report_json(abt_preparation preparation, char *buffer, size_t capacity, size_t *needed);

typedef struct abt_jsonl_counts {
    uint64_t lines;                   /* not blank */
    uint64_t values;                  /* JSON values and keys */
    uint64_t text_bytes;              /* in texts and keys, without escapes */
} abt_jsonl_counts;

/* Checks lines of JSON in full. ABT_STATUS_DATA with line, column and reason for the first that is none; counts then
 * holds what came before it. */
abt_status abt_jsonl_check(const char *text, size_t size, abt_jsonl_counts *counts);

/* ---- Model ------------------------------------------------------------------------------------------
 * Weights in memory with their configuration: read from a Hugging Face folder or a GGUF file, or drawn at
 * random. All parameters lie in one flat array, in the order of abt_model_parameter. */

typedef uint64_t abt_model;

typedef enum abt_dtype {
    ABT_DTYPE_F32 = 0,
    ABT_DTYPE_F64 = 1,
    ABT_DTYPE_STORED = 2              /* the file's own types, mapped: for runs that train an adapter in float32 */
} abt_dtype;

typedef struct abt_parameter {
    const char *name;                 /* Hugging Face's name, UTF-8, not zero-ended */
    size_t name_size;
    uint64_t offset;                  /* first element in the flat array */
    uint64_t count;                   /* elements */
    uint64_t shape[3];                /* `rank` of them: (out, in) of a matrix; experts, in, out of experts; the rest 1 */
    uint32_t rank;                    /* 1 to 3 */
    uint32_t decays;                  /* 1: weight decay applies */
} abt_parameter;

/* Reads a model folder (config.json and safetensors) or a .gguf file. With ABT_DTYPE_STORED nothing is read into
 * memory: the weights stay in the file, which must not change, and have no pointer (ABT_STATUS_UNSUPPORTED). */
abt_status abt_model_open(const char *path, abt_dtype dtype, abt_model *model);

/* Random weights for a Hugging Face config.json given as text: normal with initializer_range, norms 1,
 * biases 0. The same seed gives the same weights on every machine. */
abt_status abt_model_random(const char *config_json, uint64_t seed, abt_dtype dtype, abt_model *model);

abt_status abt_model_free(abt_model model);

/* The configuration as Hugging Face's config.json. */
abt_status abt_model_config_json(abt_model model, char *buffer, size_t capacity, size_t *needed);

/* How many parameters there are, and how many elements all of them have. */
abt_status abt_model_size(abt_model model, uint64_t *parameters, uint64_t *elements, abt_dtype *dtype);

abt_status abt_model_parameter(abt_model model, uint64_t index, abt_parameter *parameter);

/* All weights: `elements` values of `dtype`, 64-byte aligned. Writing is allowed while no trainer runs. */
abt_status abt_model_weights(abt_model model, void **weights, uint64_t *elements);

/* Writes config.json, model.safetensors and the tokenizer files of `tokenizer_dir` (may be NULL) into the
 * new folder `folder`, which appears whole or not at all. An existing folder is refused. */
abt_status abt_model_save(abt_model model, const char *folder, const char *tokenizer_dir);

/* A number that tells one model's weights from another's: CRC-32C over all norms and biases and both ends of every
 * matrix, as F32, the same for a stored model and one in memory. Checkpoints of adapter runs keep that of their base. */
abt_status abt_model_fingerprint(abt_model model, uint32_t *crc32c);

typedef struct abt_forward_options {
    size_t struct_size;
    const char *adapter;              /* NULL, or a PEFT folder: its adapter is computed beside the model, not merged */
    uint32_t threads;                 /* 0: one per CPU */
} abt_forward_options;

/* What the model says to a sequence, by the forward pass that training runs: what exported files are compared with. In
 * full float32 (float64 for such a model), also where the weights are stored in other types. `options` may be NULL.
 * logits: (count - first) * vocabulary values of the model's dtype, behind each of ids[first..]; ABT_DTYPE_STORED: float32. */
abt_status abt_model_logits(abt_model model, const abt_forward_options *options, const uint32_t *ids, size_t count,
                            size_t first, void *logits);

/* As abt_generator_score: log_probs[i] = log p(ids[first + i] | all ids before it). first is at least 1; likeliest may be
 * NULL. */
abt_status abt_model_score(abt_model model, const abt_forward_options *options, const uint32_t *ids, size_t count,
                           size_t first, double *log_probs, uint8_t *likeliest);

/* Weights from, and to, ABI's checkpoint files: ABLC (.ckpt with moments) and ABIC (weights only), version 1.
 * The file must have exactly this model's number of elements. *step: the step it was saved at. */
abt_status abt_model_import_checkpoint(abt_model model, const char *path, uint64_t *step);
abt_status abt_model_export_checkpoint(abt_model model, const char *path, uint32_t weights_only, uint64_t step);

/* ---- Adapters ----------------------------------------------------------------------------------------
 * LoRA adapters as PEFT keeps them: a folder with adapter_config.json and adapter_model.safetensors. A trainer
 * trains one when its methods_json has a table "lora". */

/* Writes the adapter a run with these settings begins with into the new folder `folder`. lora_json: the table
 * "lora" ("seed" null: 42; with "adapter" that adapter is copied). base_name: what adapter_config.json calls the
 * base; may be NULL. */
abt_status abt_adapter_create(abt_model model, const char *lora_json, const char *base_name, const char *folder);

/* Reads an adapter, or an adapter run's checkpoint, as a run on `model` would, and says what does not fit. */
abt_status abt_adapter_check(abt_model model, const char *adapter);

/* Adds an adapter to the weights of the model at `model_path` and writes the sum as the new model folder
 * `out_folder`: W + s B A, summed in double and rounded once, as F32. A tied model whose embedding or head has an
 * adapter is written with a head of its own. tokenizer_dir: NULL: the model's folder. */
abt_status abt_adapter_merge(const char *model_path, const char *adapter, const char *out_folder,
                             const char *tokenizer_dir);

/* Takes an adapter out of the weights it was merged into: W - s B A, rounded once, written as the new model folder
 * `out_folder`. *distance (may be NULL): the most by which a weight may now differ from the base's. The model must be
 * stored as F32 or F64: what a coarser type rounded away does not come back. */
abt_status abt_adapter_unmerge(const char *model_path, const char *adapter, const char *out_folder,
                               const char *tokenizer_dir, double *distance);

/* ---- Trainer ----------------------------------------------------------------------------------------
 * The training loop, one event a call: an optimizer step, an evaluation, a saved checkpoint, or the end.
 * Example: examples/c/train.c */

typedef uint64_t abt_trainer;

typedef struct abt_trainer_options {
    size_t struct_size;
    const char *run_dir;              /* receives checkpoint-N; NULL: checkpoint_path of the configuration */
    const char *tokenizer_dir;        /* its files go into each checkpoint; may be NULL */
    const char *resume_from;          /* a checkpoint-N folder to go on from; may be NULL */
    const char *methods_json;         /* {"lora": {...}, "dpo": {...}}; a table left out, or NULL: all weights, next tokens */
    const char *base_name;            /* what adapter_config.json calls the model: a path or a repository; may be NULL */
    uint32_t rank;                    /* this process among `ranks`, from 0 */
    uint32_t ranks;                   /* processes that share each update's micro-batches; 0 or 1: this one alone */
} abt_trainer_options;

typedef enum abt_event_kind {
    ABT_EVENT_NONE = 0,               /* the run is over: there is no further event */
    ABT_EVENT_STEP = 1,
    ABT_EVENT_EVALUATION = 2,
    ABT_EVENT_CHECKPOINT = 3,
    ABT_EVENT_FINISHED = 4,
    ABT_EVENT_GRADIENT = 5,           /* ranks > 1: add up what abt_trainer_exchange shows, then call next again */
    ABT_EVENT_REFERENCE = 6           /* before the first update: a reference is being asked about every pair */
} abt_event_kind;

typedef enum abt_stop_reason {
    ABT_STOP_COMPLETED = 0,
    ABT_STOP_EARLY = 1,               /* evaluations no longer improved; the best weights are back */
    ABT_STOP_INTERRUPTED = 2          /* abt_trainer_request_stop */
} abt_stop_reason;

/* Which fields have a meaning depends on `kind`; the others are 0. */
typedef struct abt_event {
    size_t struct_size;               /* set by the caller */
    abt_event_kind kind;
    uint32_t micro_steps;             /* step: micro-batches in it */
    uint64_t global_step;             /* all: updates done */
    double epoch;                     /* step, evaluation: epochs done, as a fraction */
    double loss;                      /* step, evaluation, finished: nats per target */
    double accuracy;                  /* step, evaluation, finished */
    double perplexity;                /* step, evaluation, finished */
    double learning_rate;             /* step: the rate it used */
    double grad_norm;                 /* step: before clipping */
    double tokens_per_second;         /* step; finished: over the whole run */
    uint64_t tokens_processed;        /* step, finished: since the start of the run */
    uint64_t time_ns;                 /* step: its duration; finished: of all */
    uint64_t num_batches;             /* evaluation */
    uint64_t eval_tokens;             /* evaluation */
    uint32_t improved;                /* evaluation: 1 if it is the best so far */
    abt_stop_reason stop_reason;      /* finished */
    double best_val_loss;             /* finished: infinity if no evaluation ran */
    double best_val_accuracy;         /* finished */
    int64_t best_step;                /* finished: -1 if no evaluation ran */
    uint32_t checkpoints_saved;       /* finished */
    uint32_t has_preference;          /* step, evaluation: 1 in a run on pairs, where the last eight have a meaning */
    const char *path;                 /* checkpoint: its folder, UTF-8, not zero-ended; until the next event */
    size_t path_size;
    double rewards_chosen;            /* beta times the log-ratio to the reference; means over micro-batches */
    double rewards_rejected;
    double rewards_margins;
    double rewards_accuracies;        /* share of pairs whose chosen answer has the larger reward */
    double logps_chosen;              /* summed log-probability of an answer, mean over answers */
    double logps_rejected;
    double logits_chosen;             /* mean logit over vocabulary and answer tokens */
    double logits_rejected;
    uint64_t pairs_asked;             /* reference */
    uint64_t pairs;                   /* reference: of training and evaluation together */
} abt_event;

/* Begins (or resumes) a run. `config_json`: LlmTrainingConfig. `eval_dataset` may be 0. `options` may be
 * NULL. The trainer keeps model and data sets alive; the model's weights are trained in place, or not at all
 * when methods_json has a table "lora": then an adapter is trained, which the trainer owns. */
abt_status abt_trainer_open(const char *config_json, abt_model model, abt_dataset dataset,
                            abt_dataset eval_dataset, const abt_trainer_options *options, abt_trainer *trainer);
abt_status abt_trainer_free(abt_trainer trainer);

/* Does the next thing and says what it was. Can take long. After a failure weights and checkpoints are as
 * they were before the call. */
abt_status abt_trainer_next(abt_trainer trainer, abt_event *event);

/* Rows (of pairs: pairs) that teach nothing within max_seq_len and are left out, and rows that lose their end to it. */
typedef struct abt_left_out {
    size_t struct_size;               /* set by the caller */
    uint64_t dropped;
    uint64_t truncated;
    uint64_t eval_dropped;
    uint64_t eval_truncated;
} abt_left_out;
abt_status abt_trainer_left_out(abt_trainer trainer, abt_left_out *counts);

/* After ABT_EVENT_GRADIENT: this process's part of the gradient (of the trainer's dtype) and of some sums; before the
 * first update there may be sums alone. The caller
 * replaces both by their totals over all processes, in place; the next call of abt_trainer_next makes the update.
 * All processes have one configuration, data and model; only rank 0 gets a run_dir. A requested stop takes effect
 * on all after the next exchange. The pointers are valid until then. */
abt_status abt_trainer_exchange(abt_trainer trainer, void **gradients, uint64_t *elements, double **sums,
                                uint64_t *sum_count);

/* Asks the run to end: the update in progress is completed, a checkpoint is saved, and the run finishes
 * with ABT_STOP_INTERRUPTED. May be called from any thread at any time. */
abt_status abt_trainer_request_stop(abt_trainer trainer);

/* Saves a checkpoint now. The path is filled in as text. */
abt_status abt_trainer_save(abt_trainer trainer, char *buffer, size_t capacity, size_t *needed);

/* Whether a checkpoint folder is whole: every file is read and compared with checksums.json, or without that list
 * parsed. ABT_STATUS_CHECKPOINT and the file's name when it is not. */
abt_status abt_checkpoint_check(const char *checkpoint);

/* Writes checksums.json over all files that lie in a folder, for checkpoints that were written by others. */
abt_status abt_checkpoint_seal(const char *folder);

/* The newest whole checkpoint in a run's folder, as JSON: {"step": N of checkpoint-N or null, "note": text}.
 * Every file is read and its checksum compared; damaged checkpoints are passed over and the note names
 * them. ABT_STATUS_CHECKPOINT when there are checkpoints and none is whole. */
abt_status abt_checkpoint_latest_json(const char *run_dir, char *buffer, size_t capacity, size_t *needed);

/* Updates done, and updates planned in all. */
abt_status abt_trainer_progress(abt_trainer trainer, uint64_t *global_step, uint64_t *max_steps);

/* What is trained: the model's parameters, or an adapter's under the names PEFT gives them. */
abt_status abt_trainer_size(abt_trainer trainer, uint64_t *parameters, uint64_t *elements, abt_dtype *dtype);
abt_status abt_trainer_parameter(abt_trainer trainer, uint64_t index, abt_parameter *parameter);

/* The values of what is trained: `elements` values of abt_trainer_size's dtype. Read and write them between calls
 * of abt_trainer_next. */
abt_status abt_trainer_weights(abt_trainer trainer, void **weights, uint64_t *elements);

/* Writes the adapter as it is now into the new folder `folder`. ABT_STATUS_UNSUPPORTED without one. */
abt_status abt_trainer_save_adapter(abt_trainer trainer, const char *folder);

/* Gradients of the last update (before clipping) and AdamW's moments: flat arrays laid out like
 * abt_trainer_parameter says and of the same dtype. The moments have 0 elements with sgd. Each pointer may be NULL if not
 * wanted. Read them between calls of abt_trainer_next. */
abt_status abt_trainer_buffers(abt_trainer trainer, const void **gradients, const void **first_moment,
                               const void **second_moment, uint64_t *gradient_elements, uint64_t *moment_elements);

/* ---- Plan -------------------------------------------------------------------------------------------
 * What a run needs, told before it starts and without its memory. */

typedef struct abt_plan_options {
    size_t struct_size;
    const char *methods_json;         /* as in abt_trainer_options */
    const char *base_name;            /* as in abt_trainer_options */
    const char *tokenizer_dir;        /* as in abt_trainer_options */
    abt_dtype dtype;                  /* of the model in memory; ABT_DTYPE_STORED: it stays in its file (needs "lora") */
} abt_plan_options;

/* {"parameters", "trained", "sequences", "time", "threads", "memory": {part: bytes}, "training": {"micro_batches",
 * "units", "dropped", "truncated", "targets", "tokens", "positions"} of one epoch or null, "evaluation": the same or null,
 * "updates_per_epoch", "updates", "files": [{"name", "bytes"}] of a checkpoint, "state_bytes", "step_record_bytes",
 * "eval_record_bytes"}. `model_config_json`: config.json, also for a model that is not there. `dataset` and
 * `eval_dataset` may be 0: then a micro-batch is taken to be full, and there are no counts. `options` may be NULL. */
abt_status abt_plan_json(const char *config_json, const char *model_config_json, abt_dataset dataset,
                         abt_dataset eval_dataset, const abt_plan_options *options, char *buffer, size_t capacity,
                         size_t *needed);

/* {"parameters": [{"name", "shape"}]} in flat order, of a model of which only config.json is there. */
abt_status abt_plan_layout_json(const char *model_config_json, char *buffer, size_t capacity, size_t *needed);

/* ---- Files ------------------------------------------------------------------------------------------
 * GGUF: write one from a model folder, look into one. */

typedef struct abt_export_options {
    size_t struct_size;
    const char *source;               /* a Hugging Face folder */
    const char *adapter;              /* NULL, or a PEFT folder whose adapter is added to the model on the way */
    const char *out_path;             /* *.gguf */
    const char *dtype;                /* of all matrices: f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k or
                                       * mxfp4; not read where mix is given */
    const char *mix;                  /* NULL, or a type for each matrix as llama.cpp's quantiser chooses it: f32, f16, bf16,
                                       * q8_0, q6_k, q5_k_m, q5_k_s, q4_k_m, q4_k_s, q5_1, q5_0, q4_1, q4_0 or mxfp4_moe */
    const char *name;                 /* general.name; NULL: from the folder's name */
    const char *about_json;           /* NULL, or an object of texts and 32-bit numbers under keys of general. that are
                                       * free, such as {"general.license": "apache-2.0"} */
    const char *tokenizer_dir;        /* NULL: the source's own */
    const char *pre;                  /* llama.cpp's name of the pre-tokenizer where its regex is unknown; or NULL */
    const char *experts;              /* of those the source has as MXFP4. NULL or keep: they stay so, to the bit but for those the
                                       * adapter changes; changed_as_bf16: a tensor with one of these is bf16; expand: they become
                                       * what other matrices become */
    uint32_t without_tokenizer;       /* 1: a file without vocabulary */
    uint32_t threads;                 /* 0: one per CPU */
} abt_export_options;

/* Writes the file under a temporary name, reads it back strictly, then renames it. *bytes and *tensors may
 * be NULL. */
abt_status abt_export_gguf(const abt_export_options *options, uint64_t *bytes, uint64_t *tensors);

/* The exact number of bytes abt_export_gguf would write. */
abt_status abt_export_gguf_size(const abt_export_options *options, uint64_t *bytes);

typedef struct abt_adapter_export_options {
    size_t struct_size;
    const char *adapter;              /* a PEFT folder: adapter_config.json, adapter_model.safetensors */
    const char *model;                /* the base: a folder with config.json or a .gguf file; NULL: config.json beside
                                       * the adapter, else its base_model_name_or_path where that is a path */
    const char *out_path;             /* *.gguf */
    const char *dtype;                /* f32, f16 or bf16 */
    const char *name;                 /* general.name; NULL: from the folder's name */
} abt_adapter_export_options;

/* Writes a LoRA adapter as a GGUF that llama.cpp puts on the base's GGUF, safely as above. Refused with the reason:
 * what llama.cpp cannot apply (head or embedding of a tied model, DoRA, whole trained modules, …). *bytes and
 * *tensors may be NULL. */
abt_status abt_export_adapter_gguf(const abt_adapter_export_options *options, uint64_t *bytes, uint64_t *tensors);

/* {"version", "alignment", "keys": {key: value}, "tensors": [{"name", "dtype", "shape", "offset", "bytes"}]}.
 * shape is in GGUF's order: the row length first. Of an array with more than array_limit elements only
 * {"type", "count"} is shown. */
abt_status abt_gguf_inspect_json(const char *path, uint64_t array_limit, char *buffer, size_t capacity, size_t *needed);

typedef struct abt_quantize_options {
    size_t struct_size;
    const char *source;               /* a GGUF file in floats, or one of the parts of a model */
    const char *out_path;             /* *.gguf */
    const char *mix;                  /* as in abt_export_options */
    const char *imatrix;              /* NULL, or an importance matrix: .gguf or .dat */
    const char *output_type;          /* NULL, or the type of output.weight */
    const char *embedding_type;       /* NULL, or the type of token_embd.weight */
    uint32_t pure;                    /* 1: the same type for every matrix */
    uint32_t leave_output;            /* 1: output.weight stays as it is */
    uint32_t allow_requantize;        /* 1: take a source that was rounded to blocks before, although it loses twice */
    uint32_t threads;                 /* 0: one per CPU */
} abt_quantize_options;

typedef struct abt_quantize_report {
    size_t struct_size;
    uint64_t bytes;                   /* of the file */
    uint64_t source_bytes;            /* of the tensors in the source */
    uint64_t elements;
    uint64_t tensors;
    uint64_t fallbacks;               /* matrices whose rows did not fit the type meant for them, and got one that fits */
} abt_quantize_report;

/* Writes a GGUF file in a coarser type, with the bytes llama.cpp's quantiser writes; it gets its name when it is whole
 * and was read back. report may be NULL, else set its struct_size. */
abt_status abt_gguf_quantize(const abt_quantize_options *options, abt_quantize_report *report);

/* The exact number of bytes abt_gguf_quantize would write. */
abt_status abt_gguf_quantize_size(const abt_quantize_options *options, uint64_t *bytes);

/* Cuts a file into prefix-00001-of-0000N.gguf and so on: at most max_bytes of tensor data a part (a larger tensor gets a
 * part of its own) and at most max_tensors; 0: no limit, but one must be given. *parts: N; may be NULL. The first part
 * gets its name last; names that are there are refused. */
abt_status abt_gguf_split(const char *source, const char *prefix, uint64_t max_bytes, uint64_t max_tensors, uint32_t *parts);

/* Puts the parts that `part` is one of together; *bytes and *tensors of the result may be NULL. */
abt_status abt_gguf_join(const char *part, const char *out_path, uint64_t *bytes, uint64_t *tensors);

/* Makes the Hugging Face folder of a model file, or the PEFT folder of an adapter; it must not exist. dtype: bf16 (also NULL), f16 or
 * f32, of what is stored in blocks other than experts' MXFP4, which stay. tokenizer_dir: NULL, or a folder whose tokenizer files
 * are copied. model: the base of an adapter, a folder or a .gguf file; NULL for a model. *bytes and *tensors of what was
 * written may be NULL. */
abt_status abt_gguf_unpack(const char *source, const char *folder, const char *dtype, const char *tokenizer_dir, const char *model,
                           uint64_t *bytes, uint64_t *tensors);

/* ---- Generator --------------------------------------------------------------------------------------
 * Runs a GGUF file: ids in, ids out. What was computed for an earlier prompt that begins the same is kept. */

typedef uint64_t abt_generator;

typedef enum abt_cache {
    ABT_CACHE_USUAL = 0,              /* f16 under quantised weights, f32 under floats or with exact products */
    ABT_CACHE_F32 = 1,
    ABT_CACHE_F16 = 2,
    ABT_CACHE_Q8_0 = 3                /* for heads of a multiple of 32 numbers */
} abt_cache;

/* Where the ramp of YaRN's frequencies lies: as the model was trained, or rounded to whole numbers as llama.cpp runs it.
 * Models without YaRN compute the same either way. */
typedef enum abt_yarn {
    ABT_YARN_EXACT = 0,
    ABT_YARN_GGML = 1
} abt_yarn;

typedef struct abt_generator_options {
    size_t struct_size;
    uint32_t threads;                 /* 0: one per CPU */
    uint32_t context;                 /* ids the model can look back; 0: what it was trained for, at most 4096 */
    uint32_t exact;                   /* 1: multiply weights as the floats they stand for; 0: quantised ones with
                                         activations rounded to 8 bits, as llama.cpp does, and f16 and bf16 of a
                                         prompt, both sides rounded to 16 bits, where AVX-512 is; much faster */
    uint32_t cache;                   /* abt_cache: how keys and values are kept */
    uint32_t yarn;                    /* abt_yarn */
} abt_generator_options;

typedef struct abt_sampling {
    size_t struct_size;
    float temperature;                /* 0: always the most likely */
    uint32_t top_k;                   /* 0: all */
    float top_p;                      /* 1: all */
    float min_p;                      /* 0: all */
    float repeat_penalty;             /* 1: off */
    uint32_t repeat_window;
    uint64_t seed;
} abt_sampling;

typedef enum abt_end {
    ABT_END_NONE = 0,                 /* an id was given out; there may be more */
    ABT_END_STOP_ID = 1,              /* a stop id was drawn; it is not given out */
    ABT_END_LENGTH = 2,               /* max_tokens were given out */
    ABT_END_CONTEXT = 3,              /* the context is full */
    ABT_END_COMPLETE = 4              /* the JSON value is whole, and nothing may follow */
} abt_end;

/* `options` may be NULL. */
abt_status abt_generator_open(const char *path, const abt_generator_options *options, abt_generator *generator);
abt_status abt_generator_free(abt_generator generator);

/* {"config": as in config.json, "context", "threads", "parameters", "cache": "f16", "cache_bytes"}. */
abt_status abt_generator_info_json(abt_generator generator, char *buffer, size_t capacity, size_t *needed);

/* One answer that is wanted. */
typedef struct abt_request {
    size_t struct_size;
    const uint32_t *ids;              /* what to continue */
    size_t count;                     /* at least 1 */
    const abt_sampling *sampling;     /* NULL: temperature 0 */
    const uint32_t *stop_ids;         /* drawing one ends the answer; may be NULL with stop_count 0 */
    size_t stop_count;
    uint64_t max_tokens;
    uint32_t drafts;                  /* ids guessed from what was there before and confirmed in one pass, at most
                                         15; 0: none. They change no id, only how long it takes. */
    const char *json_schema;          /* NULL: any text; else JSON as this schema asks, and no other id is drawn
                                         (docs/generation.md has the keywords). Needs the file's tokenizer. */
} abt_request;

/* What came of a pass. */
typedef struct abt_token {
    uint32_t request;                 /* which one: its index */
    uint32_t id;
    abt_end end;                      /* other than ABT_END_NONE: there is no id, the answer is over */
} abt_token;

/* What an answer took. */
typedef struct abt_counts {
    size_t struct_size;
    uint64_t prompt;                  /* ids of the prompt */
    uint64_t reused;                  /* of these, how many were there already */
    uint64_t answer;                  /* ids given out */
    uint64_t guessed;
    uint64_t accepted;                /* of the guessed ones */
} abt_counts;

/* Begins to answer `count` (at least one) requests, at most `lanes` (1 to 32) at a time; the weights are
 * read once for all of them. The first prompt is read at once. Requests are copied; what was in progress is stopped.
 * What a request gets does not depend, to the bit, on the others, on lanes, or on what was asked before. */
abt_status abt_generator_start(abt_generator generator, const abt_request *requests, size_t count, uint32_t lanes);

/* The next tokens, at most `capacity` (at least 1), their number in *count; 0: all answers are over. Those of one
 * request come in order. */
abt_status abt_generator_next(abt_generator generator, abt_token *tokens, size_t capacity, size_t *count);

/* The logits the last token of `request` that the last abt_generator_next gave out was chosen from, one a vocabulary
 * entry; right after abt_generator_start those behind the first request's prompt. Valid until the next call on this
 * generator. */
abt_status abt_generator_logits(abt_generator generator, size_t request, const float **logits, uint64_t *count);

/* What `request` took so far. */
abt_status abt_generator_counts(abt_generator generator, size_t request, abt_counts *counts);

/* Writes what was computed of the last prompt to `path`, whole or not at all; *ids (may be NULL): of how many ids. */
abt_status abt_generator_save_cache(abt_generator generator, const char *path, uint64_t *ids);

/* Reads what abt_generator_save_cache wrote, in place of what is kept; the next prompt that begins with the same ids is
 * computed from there on, with the same bits. *ids (may be NULL): how many ids there are. A file that is damaged, or of
 * another model, CPU level or way of computing, is refused (ABT_STATUS_FORMAT) and changes nothing. Ends what
 * abt_generator_start began. */
abt_status abt_generator_load_cache(abt_generator generator, const char *path, uint64_t *ids);

/* The logits behind every id from ids[first] on: (count - first) rows, each a value a vocabulary entry, into `logits`,
 * whose `capacity` is counted in floats. Ends what abt_generator_start began. */
abt_status abt_generator_all_logits(abt_generator generator, const uint32_t *ids, size_t count, size_t first,
                                    float *logits, size_t capacity);

/* How likely the model finds what is there: log_probs[i] = log p(ids[first + i] | all ids before it), for the
 * `count - first` ids from `first` (at least 1) on. likeliest may be NULL; else likeliest[i] is 1 where no other id is
 * likelier. What was fed for an earlier call that begins with the same ids is kept, so several ends of one beginning
 * cost little. Ends what abt_generator_start began. */
abt_status abt_generator_score(abt_generator generator, const uint32_t *ids, size_t count, size_t first,
                               double *log_probs, uint8_t *likeliest);

/* cdef:end */

#ifdef __cplusplus
}
#endif

#endif /* ABI_TRAIN_H */
