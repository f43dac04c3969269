//! Root of the quant layer.
