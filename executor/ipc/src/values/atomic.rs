//! Numbers and truth values in shared memory that need no lock (Python's `Value(..., lock=False)` and `Array(...,
//! lock=False)`, but with `+=` that is one step).
//!
//! An [`Atomic<T>`] is what stands in the memory; [`AtomicValue`] is a handle of one, [`AtomicArray`] of many, which is
//! simply a slice of them. Floats are kept by their bits, and truth values in a byte of which every value but zero is
//! true, so that no pattern of bits is invalid.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::ops::Deref;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::memory::segment::{Layout, Segment};
use crate::travel::Fd;

mod sealed {
    use std::sync::atomic::Ordering;

    /// The memory of an atomic: an unsigned integer.
    pub trait Cell: Send + Sync {
        type Bits: Copy + PartialEq;
        fn load(&self, order: Ordering) -> Self::Bits;
        fn store(&self, bits: Self::Bits, order: Ordering);
        fn swap(&self, bits: Self::Bits, order: Ordering) -> Self::Bits;
        fn exchange(
            &self,
            current: Self::Bits,
            new: Self::Bits,
            orders: (Ordering, Ordering),
            weak: bool,
        ) -> Result<Self::Bits, Self::Bits>;
        fn add(&self, bits: Self::Bits, order: Ordering) -> Self::Bits;
        fn sub(&self, bits: Self::Bits, order: Ordering) -> Self::Bits;
        fn and(&self, bits: Self::Bits, order: Ordering) -> Self::Bits;
        fn or(&self, bits: Self::Bits, order: Ordering) -> Self::Bits;
        fn xor(&self, bits: Self::Bits, order: Ordering) -> Self::Bits;
    }

    pub trait Sealed: Copy + PartialEq {
        type Cell: Cell;
        fn to_bits(self) -> <Self::Cell as Cell>::Bits;
        fn from_bits(bits: <Self::Cell as Cell>::Bits) -> Self;
    }
}

use sealed::{Cell, Sealed};

/// What an [`Atomic`] can hold: `u8` to `u64`, `i8` to `i64`, `usize`, `isize`, `f32`, `f64`, `bool`.
pub trait AtomicPrimitive: Sealed + fmt::Debug + Send + Sync + 'static {}

/// Those that can be added to.
pub trait AtomicNumber: AtomicPrimitive {
    #[doc(hidden)]
    fn add(cell: &Self::Cell, value: Self, order: Ordering) -> Self;
    #[doc(hidden)]
    fn sub(cell: &Self::Cell, value: Self, order: Ordering) -> Self;
    #[doc(hidden)]
    fn lesser(self, other: Self) -> Self;
    #[doc(hidden)]
    fn greater(self, other: Self) -> Self;
}

/// Those whose bits mean something one by one: the integers and `bool`.
pub trait AtomicBits: AtomicPrimitive {}

macro_rules! cells {
    ($($cell:ident $bits:ident),+) => {$(
        impl Cell for $cell {
            type Bits = $bits;
            #[inline]
            fn load(&self, order: Ordering) -> $bits { self.load(order) }
            #[inline]
            fn store(&self, bits: $bits, order: Ordering) { self.store(bits, order) }
            #[inline]
            fn swap(&self, bits: $bits, order: Ordering) -> $bits { self.swap(bits, order) }
            #[inline]
            fn exchange(&self, current: $bits, new: $bits, orders: (Ordering, Ordering), weak: bool) -> Result<$bits, $bits> {
                if weak {
                    self.compare_exchange_weak(current, new, orders.0, orders.1)
                } else {
                    self.compare_exchange(current, new, orders.0, orders.1)
                }
            }
            #[inline]
            fn add(&self, bits: $bits, order: Ordering) -> $bits { self.fetch_add(bits, order) }
            #[inline]
            fn sub(&self, bits: $bits, order: Ordering) -> $bits { self.fetch_sub(bits, order) }
            #[inline]
            fn and(&self, bits: $bits, order: Ordering) -> $bits { self.fetch_and(bits, order) }
            #[inline]
            fn or(&self, bits: $bits, order: Ordering) -> $bits { self.fetch_or(bits, order) }
            #[inline]
            fn xor(&self, bits: $bits, order: Ordering) -> $bits { self.fetch_xor(bits, order) }
        }
    )+};
}

cells!(AtomicU8 u8, AtomicU16 u16, AtomicU32 u32, AtomicU64 u64);

macro_rules! integers {
    ($($int:ident $cell:ident $bits:ident),+ $(,)?) => {$(
        impl Sealed for $int {
            type Cell = $cell;
            #[inline]
            fn to_bits(self) -> $bits { self as $bits }
            #[inline]
            fn from_bits(bits: $bits) -> Self { bits as $int }
        }
        impl AtomicPrimitive for $int {}
        impl AtomicBits for $int {}
        impl AtomicNumber for $int {
            #[inline]
            fn add(cell: &$cell, value: Self, order: Ordering) -> Self { Cell::add(cell, value as $bits, order) as $int }
            #[inline]
            fn sub(cell: &$cell, value: Self, order: Ordering) -> Self { Cell::sub(cell, value as $bits, order) as $int }
            fn lesser(self, other: Self) -> Self { self.min(other) }
            fn greater(self, other: Self) -> Self { self.max(other) }
        }
    )+};
}

integers!(u8 AtomicU8 u8, i8 AtomicU8 u8, u16 AtomicU16 u16, i16 AtomicU16 u16, u32 AtomicU32 u32, i32 AtomicU32 u32, u64 AtomicU64 u64,
    i64 AtomicU64 u64);
#[cfg(target_pointer_width = "64")]
integers!(usize AtomicU64 u64, isize AtomicU64 u64);
#[cfg(target_pointer_width = "32")]
integers!(usize AtomicU32 u32, isize AtomicU32 u32);

macro_rules! floats {
    ($($float:ident $cell:ident $bits:ident),+) => {$(
        impl Sealed for $float {
            type Cell = $cell;
            #[inline]
            fn to_bits(self) -> $bits { $float::to_bits(self) }
            #[inline]
            fn from_bits(bits: $bits) -> Self { $float::from_bits(bits) }
        }
        impl AtomicPrimitive for $float {}
        impl AtomicNumber for $float {
            #[inline]
            fn add(cell: &$cell, value: Self, order: Ordering) -> Self { change::<Self>(cell, order, |it| it + value) }
            #[inline]
            fn sub(cell: &$cell, value: Self, order: Ordering) -> Self { change::<Self>(cell, order, |it| it - value) }
            fn lesser(self, other: Self) -> Self { self.min(other) }
            fn greater(self, other: Self) -> Self { self.max(other) }
        }
    )+};
}

floats!(f32 AtomicU32 u32, f64 AtomicU64 u64);

impl Sealed for bool {
    type Cell = AtomicU8;
    #[inline]
    fn to_bits(self) -> u8 {
        u8::from(self)
    }
    #[inline]
    fn from_bits(bits: u8) -> Self {
        bits != 0
    }
}

impl AtomicPrimitive for bool {}
impl AtomicBits for bool {}

/// What may follow the failure of a change with that order on its success.
fn failure(order: Ordering) -> Ordering {
    match order {
        Ordering::Release => Ordering::Relaxed,
        Ordering::AcqRel => Ordering::Acquire,
        other => other,
    }
}

#[inline]
fn change<T: Sealed>(cell: &T::Cell, order: Ordering, mut change: impl FnMut(T) -> T) -> T {
    let mut found = cell.load(Ordering::Relaxed);
    loop {
        let before = T::from_bits(found);
        match cell.exchange(found, change(before).to_bits(), (order, failure(order)), true) {
            Ok(_) => return before,
            Err(now) => found = now,
        }
    }
}

/// A number or truth value that several processes may change at once, each change in one step.
///
/// The operations, their orderings and their panics (for an ordering that makes no sense, such as a load with
/// `Release`) are those of [`std::sync::atomic`]. If you don't know which one to take: `Relaxed` for counters,
/// `AcqRel`, `Acquire` and `Release` for what announces other data.
#[repr(transparent)]
pub struct Atomic<T: AtomicPrimitive> {
    cell: T::Cell,
}

// SAFETY: repr(transparent) over a `Cell`, of which there are four (the trait is sealed), all of them atomics; and any
// bits are a `T`, by `from_bits`.
unsafe impl<T: AtomicPrimitive> Layout for Atomic<T> {}

impl<T: AtomicPrimitive> Atomic<T> {
    /// The value.
    #[inline]
    pub fn load(&self, order: Ordering) -> T {
        T::from_bits(self.cell.load(order))
    }

    /// Sets the value.
    #[inline]
    pub fn store(&self, value: T, order: Ordering) {
        self.cell.store(value.to_bits(), order);
    }

    /// Sets the value and returns the one before.
    #[inline]
    pub fn swap(&self, value: T, order: Ordering) -> T {
        T::from_bits(self.cell.swap(value.to_bits(), order))
    }

    /// Sets the value to `new` if it is `current`. Floats are compared by their bits.
    ///
    /// # Errors
    ///
    /// The value that is there, if it's another one.
    #[inline]
    pub fn compare_exchange(&self, current: T, new: T, success: Ordering, failure: Ordering) -> Result<T, T> {
        self.exchange(current, new, (success, failure), false)
    }

    /// As [`compare_exchange`](Atomic::compare_exchange), but may fail without a reason, for loops.
    ///
    /// # Errors
    ///
    /// The value that is there.
    #[inline]
    pub fn compare_exchange_weak(&self, current: T, new: T, success: Ordering, failure: Ordering) -> Result<T, T> {
        self.exchange(current, new, (success, failure), true)
    }

    /// Sets the value to what `change` makes of it, as soon as nobody has changed it meanwhile; returns the one before.
    ///
    /// # Errors
    ///
    /// The value that is there, if `change` says `None`.
    pub fn fetch_update(&self, set: Ordering, fetch: Ordering, mut change: impl FnMut(T) -> Option<T>) -> Result<T, T> {
        let mut found = self.cell.load(fetch);
        while let Some(new) = change(T::from_bits(found)) {
            match self.cell.exchange(found, new.to_bits(), (set, fetch), true) {
                Ok(before) => return Ok(T::from_bits(before)),
                Err(now) => found = now,
            }
        }
        Err(T::from_bits(found))
    }

    #[inline]
    fn exchange(&self, current: T, new: T, orders: (Ordering, Ordering), weak: bool) -> Result<T, T> {
        let (current, new) = (current.to_bits(), new.to_bits());
        self.cell.exchange(current, new, orders, weak).map(T::from_bits).map_err(T::from_bits)
    }
}

impl<T: AtomicNumber> Atomic<T> {
    /// Adds, and returns the value before. Integers wrap around.
    #[inline]
    pub fn fetch_add(&self, value: T, order: Ordering) -> T {
        T::add(&self.cell, value, order)
    }

    /// Subtracts, and returns the value before. Integers wrap around.
    #[inline]
    pub fn fetch_sub(&self, value: T, order: Ordering) -> T {
        T::sub(&self.cell, value, order)
    }

    /// Sets the value to the lesser of the two, and returns the one before.
    pub fn fetch_min(&self, value: T, order: Ordering) -> T {
        change::<T>(&self.cell, order, |it| it.lesser(value))
    }

    /// Sets the value to the greater of the two, and returns the one before.
    pub fn fetch_max(&self, value: T, order: Ordering) -> T {
        change::<T>(&self.cell, order, |it| it.greater(value))
    }
}

impl<T: AtomicBits> Atomic<T> {
    /// Keeps the bits that `value` has too, and returns the value before.
    #[inline]
    pub fn fetch_and(&self, value: T, order: Ordering) -> T {
        T::from_bits(self.cell.and(value.to_bits(), order))
    }

    /// Sets the bits that `value` has, and returns the value before.
    #[inline]
    pub fn fetch_or(&self, value: T, order: Ordering) -> T {
        T::from_bits(self.cell.or(value.to_bits(), order))
    }

    /// Turns the bits over that `value` has, and returns the value before.
    #[inline]
    pub fn fetch_xor(&self, value: T, order: Ordering) -> T {
        T::from_bits(self.cell.xor(value.to_bits(), order))
    }
}

impl<T: AtomicPrimitive> fmt::Debug for Atomic<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.load(Ordering::Relaxed).fmt(f)
    }
}

/// One [`Atomic`] in shared memory (Python: `multiprocessing.Value(..., lock=False)`, which has no atomic `+=`).
///
/// A handle: cheap to clone, and sending it to another process sends the handle. Gone with its last handle, however
/// its owners end.
///
/// # Examples
///
/// ```
/// use std::sync::atomic::Ordering::Relaxed;
///
/// use polypool_ipc::AtomicValue;
///
/// # fn main() -> std::io::Result<()> {
/// let total = AtomicValue::new(0.5_f64)?;
/// total.fetch_add(1.0, Relaxed);
/// assert_eq!(total.load(Relaxed), 1.5);
/// # Ok(())
/// # }
/// ```
pub struct AtomicValue<T: AtomicPrimitive> {
    many: AtomicArray<T>,
}

impl<T: AtomicPrimitive> AtomicValue<T> {
    /// A new one.
    ///
    /// # Errors
    ///
    /// What the system says when there is no memory or no descriptor.
    pub fn new(value: T) -> io::Result<Self> {
        AtomicArray::from_slice(&[value]).map(|many| AtomicValue { many })
    }

    /// Whether both are handles of the same memory.
    #[must_use = "it has no effect but its result"]
    pub fn is_same(&self, other: &AtomicValue<T>) -> bool {
        self.many.is_same(&other.many)
    }
}

impl<T: AtomicPrimitive> Deref for AtomicValue<T> {
    type Target = Atomic<T>;

    #[inline]
    fn deref(&self) -> &Atomic<T> {
        self.many.segment.at(size_of::<Head>())
    }
}

impl<T: AtomicPrimitive> Clone for AtomicValue<T> {
    fn clone(&self) -> Self {
        AtomicValue { many: self.many.clone() }
    }
}

impl<T: AtomicPrimitive> fmt::Debug for AtomicValue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AtomicValue").field(&**self).finish()
    }
}

impl<T: AtomicPrimitive> Serialize for AtomicValue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.many.serialize(serializer)
    }
}

impl<'de, T: AtomicPrimitive> Deserialize<'de> for AtomicValue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let many = AtomicArray::deserialize(deserializer)?;
        if many.is_empty() {
            return Err(serde::de::Error::custom("the handle of an atomic value came with memory that holds none"));
        }
        Ok(AtomicValue { many })
    }
}

/// Many [`Atomic`]s in shared memory, as a slice: `array[3].fetch_add(1, Relaxed)`, `array.iter()`, `array.get(3)`,
/// `array.len()`.
///
/// A handle, as [`AtomicValue`]. Each element is one step of its own; there is no moment at which all are seen at once.
/// For that, use an [`Array`](crate::Array).
///
/// # Examples
///
/// ```
/// use std::sync::atomic::Ordering::Relaxed;
///
/// use polypool_ipc::AtomicArray;
///
/// # fn main() -> std::io::Result<()> {
/// let done = AtomicArray::<u64>::new(4)?;
/// done[2].fetch_add(5, Relaxed);
/// assert_eq!(done.iter().map(|n| n.load(Relaxed)).sum::<u64>(), 5);
/// # Ok(())
/// # }
/// ```
pub struct AtomicArray<T: AtomicPrimitive> {
    segment: std::sync::Arc<Segment>,
    len: usize,
    of: PhantomData<T>,
}

#[repr(C, align(64))]
struct Head {
    magic: AtomicU64,
    len: AtomicU64,
}

// SAFETY: repr(C) and atomics only.
unsafe impl Layout for Head {}

/// With the size of the element, so that an honest mistake is noticed.
const fn magic<T: AtomicPrimitive>() -> u64 {
    u64::from_le_bytes(*b"pp-atom\0") | (size_of::<T>() as u64) << 56
}

impl<T: AtomicPrimitive> AtomicArray<T> {
    /// A new array whose elements are zero, or false.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if that many can't be addressed; or what the system says when there is no memory or no
    /// descriptor.
    pub fn new(len: usize) -> io::Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(size_of::<Head>()));
        let bytes = bytes.filter(|bytes| isize::try_from(*bytes).is_ok()).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("an array of {len} elements does not fit in memory"))
        })?;
        let segment = Segment::create(bytes)?;
        let head: &Head = segment.at(0);
        head.len.store(len as u64, Ordering::Relaxed);
        head.magic.store(magic::<T>(), Ordering::Release);
        Ok(AtomicArray { segment, len, of: PhantomData })
    }

    /// A new array with these elements.
    ///
    /// # Errors
    ///
    /// As for [`new`](AtomicArray::new).
    pub fn from_slice(values: &[T]) -> io::Result<Self> {
        let array = AtomicArray::new(values.len())?;
        for (atomic, value) in array.iter().zip(values) {
            atomic.store(*value, Ordering::Relaxed);
        }
        Ok(array)
    }

    /// A copy of all elements, each as it is when its turn comes.
    #[must_use = "it has no effect but its result"]
    pub fn to_vec(&self) -> Vec<T> {
        self.iter().map(|atomic| atomic.load(Ordering::Acquire)).collect()
    }

    /// Whether both are handles of the same memory.
    #[must_use = "it has no effect but its result"]
    pub fn is_same(&self, other: &AtomicArray<T>) -> bool {
        std::sync::Arc::ptr_eq(&self.segment, &other.segment)
    }
}

impl<T: AtomicPrimitive> Deref for AtomicArray<T> {
    type Target = [Atomic<T>];

    #[inline]
    fn deref(&self) -> &[Atomic<T>] {
        self.segment.slice(size_of::<Head>(), self.len)
    }
}

impl<T: AtomicPrimitive> Clone for AtomicArray<T> {
    fn clone(&self) -> Self {
        AtomicArray { segment: self.segment.clone(), len: self.len, of: PhantomData }
    }
}

impl<T: AtomicPrimitive> fmt::Debug for AtomicArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<T: AtomicPrimitive> Serialize for AtomicArray<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.segment.fd().serialize(serializer)
    }
}

impl<'de, T: AtomicPrimitive> Deserialize<'de> for AtomicArray<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fd = Fd::deserialize(deserializer)?;
        let segment = Segment::open(&fd, size_of::<Head>()).map_err(serde::de::Error::custom)?;
        let head: &Head = segment.at(0);
        let room = (segment.len() - size_of::<Head>()) / size_of::<T>();
        match usize::try_from(head.len.load(Ordering::Relaxed)) {
            Ok(len) if head.magic.load(Ordering::Acquire) == magic::<T>() && len <= room => {
                Ok(AtomicArray { segment, len, of: PhantomData })
            }
            _ => Err(serde::de::Error::custom(format!(
                "the memory that came with a handle does not hold atomics of {} bytes",
                size_of::<T>()
            ))),
        }
    }
}
