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

/* JSON about this machine as the library sees it: {"architecture", "os", "mode", "level", "threads"}. */
abt_status abt_cpu_info_json(char *buffer, size_t capacity, size_t *needed);

/* ---- Configuration ----------------------------------------------------------------------------------
 * LlmTrainingConfig travels as a JSON object. One reader decides what is valid, for every language.
 * Example: examples/c/config.c */

/* The JSON schema: types, defaults, rules and other names of every field. */
abt_status abt_config_schema_json(char *buffer, size_t capacity, size_t *needed);

/* Reads a configuration, checks every rule and writes it back with every field under its own name. */
abt_status abt_config_validate_json(const char *config_json, char *buffer, size_t capacity, size_t *needed);

/* The learning rates of `count` optimizer steps from `first_step` (counted from 0). `total_steps` is the
 * length of the whole run; it matters when decay_steps is 0. rates: `count` doubles of the caller. */
abt_status abt_schedule_learning_rates(const char *config_json, uint64_t first_step, uint64_t total_steps,
                                       double *rates, size_t count);

/* cdef:end */

#ifdef __cplusplus
}
#endif

#endif /* ABI_TRAIN_H */
