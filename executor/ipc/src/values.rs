//! Typed values in shared memory: [`Value`], [`Array`], and atomics.
//!
//! # Which types, and why that is sound
//!
//! Other processes write to the same memory. They may have crashed half-way, or lie. So only types are admitted for
//! which *every* pattern of bits is a value (zerocopy's `FromBytes`, with `IntoBytes` and `Immutable`, all of which can
//! be derived): numbers, arrays of them, structs of them without padding. Whatever stands in the memory is then a
//! value, if maybe the wrong one: a logic error, never undefined behaviour. For `bool`, `char` or an enum, store a
//! number and check it.
//!
//! - [`Value`] is copied out, changed in memory of our own, and copied back; no reference into shared memory is ever
//!   formed.
//! - [`AtomicValue`] and [`AtomicArray`] consist of atomics, which may meet with anything.
//! - [`Array`] copies single elements in the same way. Only its guard lends plain slices, under the lock; see there.

pub(crate) mod array;
pub(crate) mod atomic;
pub(crate) mod twin;
pub(crate) mod value;

use std::mem::size_of;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::object::Object;

/// What can be kept in a [`Value`](crate::Value) or [`Array`](crate::Array): plain data for which every pattern of bits
/// is a value.
///
/// Nothing needs to be done for a type to be it, but to derive zerocopy's traits:
///
/// ```
/// use zerocopy::{FromBytes, Immutable, IntoBytes};
///
/// #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
/// #[repr(C)]
/// struct Progress {
///     done: u64,
///     failed: u64,
/// }
///
/// fn can_be_shared<T: polypool_ipc::Plain>() {}
/// can_be_shared::<Progress>();
/// can_be_shared::<[f64; 3]>();
/// ```
pub trait Plain: FromBytes + IntoBytes + Immutable + Copy + Send + Sync + 'static {}

impl<T: FromBytes + IntoBytes + Immutable + Copy + Send + Sync + 'static> Plain for T {}

/// Copies a value out of the body of an object. One of one, two, four or eight bytes at a multiple of its size is never
/// torn.
#[inline]
fn load<T: Plain>(object: &Object, offset: usize) -> T {
    let mut value = T::new_zeroed();
    let bytes = value.as_mut_bytes();
    match size_of::<T>() {
        1 => bytes.copy_from_slice(&[object.at::<AtomicU8>(offset).load(Ordering::Relaxed)]),
        2 => bytes.copy_from_slice(&object.at::<AtomicU16>(offset).load(Ordering::Relaxed).to_ne_bytes()),
        4 => bytes.copy_from_slice(&object.at::<AtomicU32>(offset).load(Ordering::Relaxed).to_ne_bytes()),
        8 => bytes.copy_from_slice(&object.at::<AtomicU64>(offset).load(Ordering::Relaxed).to_ne_bytes()),
        _ => object.load(offset, bytes),
    }
    value
}

/// Copies a value into the body of an object, with the same promise.
#[inline]
fn store<T: Plain>(object: &Object, offset: usize, value: &T) {
    let bytes = value.as_bytes();
    match *bytes {
        [byte] => object.at::<AtomicU8>(offset).store(byte, Ordering::Relaxed),
        [a, b] => object.at::<AtomicU16>(offset).store(u16::from_ne_bytes([a, b]), Ordering::Relaxed),
        [a, b, c, d] => object.at::<AtomicU32>(offset).store(u32::from_ne_bytes([a, b, c, d]), Ordering::Relaxed),
        [a, b, c, d, e, f, g, h] => {
            object.at::<AtomicU64>(offset).store(u64::from_ne_bytes([a, b, c, d, e, f, g, h]), Ordering::Relaxed);
        }
        _ => object.store(offset, bytes),
    }
}
