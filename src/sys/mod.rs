//! Every system call and every `unsafe` of the library. Of ours it uses only `words`.

pub mod file;
pub mod session;
