//! Root of the kernels layer.
pub fn gemmWorkspaceBytes() usize {
    return 64;
}
