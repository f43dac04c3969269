/* Trains a tiny model from random weights and prints each update: the whole of abi_train.h's way of working.
 *
 *     python -m ziglang build examples
 *     zig-out/bin/example-c-train data.bin
 *
 * data.bin: 32-bit token ids below 64 (see docs/formats/token-bin.md). Without an argument the program makes one.
 */
#include "abi_train.h"

#include <stdio.h>
#include <string.h>

static const char *const model_config =
    "{\"model_type\": \"llama\", \"vocab_size\": 64, \"hidden_size\": 32, \"intermediate_size\": 64,"
    " \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2}";

static const char *const training_config =
    "{\"batch_size\": 2, \"max_seq_len\": 32, \"max_steps\": 10, \"learning_rate\": 1e-2,"
    " \"lr_schedule\": \"constant\", \"grad_accum_steps\": 1, \"log_interval\": 1}";

/* Every call answers with a status; the sentence belongs to the last failure on this thread. */
static int failed(abt_status status) {
    if (status == ABT_STATUS_OK) return 0;
    fprintf(stderr, "error %d: %s\n", (int)status, abt_last_error());
    return 1;
}

static int train(abt_trainer trainer) {
    abt_event event = {.struct_size = sizeof event};
    do {
        if (failed(abt_trainer_next(trainer, &event))) return 1;
        if (event.kind == ABT_EVENT_STEP)
            printf("step %2llu  loss %.4f  grad %.3f\n", (unsigned long long)event.global_step, event.loss, event.grad_norm);
        if (event.kind == ABT_EVENT_FINISHED) printf("finished after %llu steps\n", (unsigned long long)event.global_step);
    } while (event.kind != ABT_EVENT_NONE);
    return 0;
}

static int write_sample(const char *path) {
    FILE *file = fopen(path, "wb");
    if (file == NULL) return 1;
    for (uint32_t i = 0; i < 2000; i++) {
        const uint32_t id = i * i % 61;
        fwrite(&id, sizeof id, 1, file);
    }
    return fclose(file);
}

int main(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : "example-c-train.bin";
    abt_dataset data = 0;
    abt_model model = 0;
    abt_trainer trainer = 0;
    int result = 1;

    if (abt_abi_version() != ABT_ABI_VERSION) {
        fprintf(stderr, "the library is not the one this program was compiled for\n");
        return 1;
    }
    if (argc < 2 && write_sample(path) != 0) {
        fprintf(stderr, "%s cannot be written\n", path);
        return 1;
    }
    if (!failed(abt_dataset_open(path, 1, &data)) &&
        !failed(abt_model_random(model_config, 42, ABT_DTYPE_F32, &model)) &&
        !failed(abt_trainer_open(training_config, model, data, 0, NULL, &trainer)))
        result = train(trainer);

    /* In any order; 0 is nothing to do. */
    abt_trainer_free(trainer);
    abt_model_free(model);
    abt_dataset_free(data);
    if (argc < 2) remove(path);
    return result;
}
