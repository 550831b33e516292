//! What differs between systems, under one set of names.
//!
//! Linux has it all (`linux.rs`), Apple's systems can at least count their threads (`apple.rs`), and `portable.rs` is
//! what any Unix can do. Nothing outside this folder asks which system it runs on, except the link section in
//! `hook.rs`.

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use linux::*;

#[cfg(target_vendor = "apple")]
mod apple;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod portable;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) use portable::*;
