//! The constants of one optimizer update, made once per call in f64 and rounded once. Crosses the object line.

pub fn UpdateArgs(comptime T: type) type {
    return extern struct {
        lr: T,
        grad_scale: T,
        /// λ added to the gradient; 0 for AdamW.
        l2: T,
        /// Factor of the weight, 1 − lr·λ; 1 for Adam.
        decay: T,
        beta2: T,
        one_minus_beta1: T,
        one_minus_beta2: T,
        /// √(1 − β2^t)
        root: T,
        eps: T,
        /// lr / (1 − β1^t)
        step_size: T,
    };
}
