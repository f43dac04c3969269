#ifndef ABI_TRAIN_H
#define ABI_TRAIN_H
#endif
