/* Preloaded, this answers MKL's question whether the CPU is made by Intel with yes, and MKL takes the code for the
 * instructions the CPU really has. Used to measure PyTorch at its best on other makers' CPUs; see common.py. */
int mkl_serv_intel_cpu_true(void) { return 1; }
int mkl_serv_intel_cpu(void) { return 1; }
