//! Shared memory: segments, and what users keep in them as bytes.

pub(crate) mod copy;
pub(crate) mod fault;
pub(crate) mod huge;
pub(crate) mod list;
pub(crate) mod name;
pub(crate) mod pid_lock;
pub(crate) mod scope;
pub(crate) mod segment;
pub(crate) mod shared_memory;
