//! A list of small things of several types in shared memory (Python's `multiprocessing.shared_memory.ShareableList`).
//!
//! The number of slots is fixed, and so is the room of each: as much as its first value takes, rounded up, or as
//! [`room`](SharedListBuilder::room) says. A slot may change its type within its room. Unlike Python's, a slot is never
//! seen half-written, a value keeps its trailing zero bytes, and a change that depends on the old value
//! ([`update`](SharedList::update)) is one step.
//!
//! # Layout and protocol
//!
//! ```text
//!   magic │ count │ rooms: one for each slot │ slot 0 │ slot 1 │ …
//!   slot: lock │ version │ type, length, bytes │ type, length, bytes
//! ```
//!
//! Each slot is a value in two copies (see `values/twin.rs`): a get takes no lock, and a writer that is killed half-way
//! leaves the old value. Writers exclude each other by a lock that names its holder by process number (see
//! `pid_lock.rs`), so a list can have a name and outlive all processes. Each handle keeps its own copy of the rooms,
//! checked once when it's opened; whatever a peer writes later can't lead it outside.

use std::fmt;
use std::future::Future;
use std::io;
use std::mem::{offset_of, size_of};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::name::{self, Name};
use super::pid_lock::{PidLock, PidMutex, PidWords};
use super::segment::{Layout, Segment};
use crate::travel::Fd;
use crate::values::twin;
use crate::wait::{self, Waiting};

const MAGIC: u64 = u64::from_le_bytes(*b"pp-list2");

#[repr(C, align(64))]
struct Head {
    magic: AtomicU64,
    count: AtomicU64,
}

#[repr(C)]
struct SlotHead {
    lock: PidWords,
    version: AtomicU64,
}

// SAFETY: repr(C) and atomics only.
unsafe impl Layout for Head {}
// SAFETY: repr(C) and atomics only.
unsafe impl Layout for SlotHead {}

/// One thing in a [`SharedList`].
///
/// Two are equal if their types and values are: `Int(1)` is neither `Float(1.0)` nor `Bool(true)`.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum ListItem {
    /// Nothing.
    #[default]
    None,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number of double precision.
    Float(f64),
    /// Text.
    Str(String),
    /// Any bytes.
    Bytes(Vec<u8>),
}

impl ListItem {
    fn tag(&self) -> u8 {
        match self {
            ListItem::None => 0,
            ListItem::Bool(_) => 1,
            ListItem::Int(_) => 2,
            ListItem::Float(_) => 3,
            ListItem::Str(_) => 4,
            ListItem::Bytes(_) => 5,
        }
    }

    /// What stands in the first eight bytes, if that's all; else the bytes.
    fn payload(&self) -> Result<u64, &[u8]> {
        match self {
            ListItem::None => Ok(0),
            ListItem::Bool(value) => Ok(u64::from(*value)),
            ListItem::Int(value) => Ok(value.cast_unsigned()),
            ListItem::Float(value) => Ok(value.to_bits()),
            ListItem::Str(value) => Err(value.as_bytes()),
            ListItem::Bytes(value) => Err(value),
        }
    }

    fn len(&self) -> usize {
        self.payload().map_or_else(<[u8]>::len, |_| size_of::<u64>())
    }
}

macro_rules! from {
    ($($from:ty => $item:ident),+ $(,)?) => {$(
        impl From<$from> for ListItem {
            fn from(value: $from) -> Self {
                ListItem::$item(value.into())
            }
        }
    )+};
}

from!(bool => Bool, i64 => Int, i32 => Int, i16 => Int, i8 => Int, u32 => Int, u16 => Int, u8 => Int, f64 => Float, f32 => Float,
    String => Str, &str => Str, Vec<u8> => Bytes, &[u8] => Bytes);

impl<const N: usize> From<&[u8; N]> for ListItem {
    fn from(value: &[u8; N]) -> Self {
        ListItem::Bytes(value.to_vec())
    }
}

impl From<()> for ListItem {
    fn from((): ()) -> Self {
        ListItem::None
    }
}

impl<T: Into<ListItem>> From<Option<T>> for ListItem {
    fn from(value: Option<T>) -> Self {
        value.map_or(ListItem::None, Into::into)
    }
}

/// Why a slot of a [`SharedList`] could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// There is no such slot.
    #[error("the list has {len} slots, and slot {index} is not among them")]
    #[non_exhaustive]
    OutOfRange {
        /// The slot that was asked for.
        index: usize,
        /// How many there are.
        len: usize,
    },
    /// The value takes more bytes than its slot has. The slot still has its old value.
    #[error("slot {index} has room for {room} bytes, and the value takes {needed}")]
    #[non_exhaustive]
    TooLong {
        /// The slot.
        index: usize,
        /// The bytes that the value takes.
        needed: usize,
        /// The bytes that the slot has.
        room: usize,
    },
    /// Another process has written something that isn't a value.
    #[error("slot {index} holds nothing that is a value: another process has damaged it")]
    #[non_exhaustive]
    Damaged {
        /// The slot.
        index: usize,
    },
    /// Another process has truncated the memory of a named list, so all of it is gone.
    #[error("somebody has truncated the memory of the shared list, and its content is gone")]
    Lost,
    /// Somebody else is writing to the slot. Only the `try_` forms say so.
    #[error("slot {index} is being written to")]
    #[non_exhaustive]
    WouldBlock {
        /// The slot.
        index: usize,
    },
    /// Somebody else was writing to the slot all the time. Only the `_timeout` forms say so.
    #[error("slot {index} was being written to for the whole timeout")]
    #[non_exhaustive]
    TimedOut {
        /// The slot.
        index: usize,
    },
}

/// A list in shared memory: a fixed number of slots for numbers, truth values, text, bytes, or nothing.
///
/// A handle: cheap to clone, and sending it to another process sends the handle and not the items. Gone with its last
/// handle, unless it was given a name. Python's equivalent is `multiprocessing.shared_memory.ShareableList`.
///
/// A slot is changed as a whole: nobody sees it half-written, and a writer that is killed half-way leaves the old item.
/// Writers of the same slot wait for each other; the processes that write to a list must be of the same pid namespace
/// (not of several containers).
///
/// # Examples
///
/// ```
/// use polypool_ipc::{ListItem, SharedList};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let list = SharedList::new(["howdy".into(), 42.into(), 2.5.into(), true.into(), ListItem::None])?;
/// list.set(0, "ahoy")?;
/// list.update(1, |item| if let ListItem::Int(n) = item { *n += 1 })?;
/// assert_eq!(list.get(1)?, ListItem::Int(43));
/// assert_eq!(list.index("ahoy")?, Some(0));
/// let error = list.set(0, "far too long for its slot").unwrap_err();
/// assert_eq!(error.to_string(), "slot 0 has room for 8 bytes, and the value takes 25");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[doc(alias = "ShareableList")]
pub struct SharedList {
    segment: Arc<Segment>,
    places: Arc<[Place]>,
    name: Option<Name>,
}

#[derive(Clone, Copy)]
struct Place {
    offset: usize,
    room: usize,
}

impl Place {
    /// Where the copy 0 or 1 of this slot begins.
    #[inline]
    fn copy(self, which: usize) -> usize {
        self.offset + size_of::<SlotHead>() + which * (size_of::<u64>() + self.room)
    }
}

/// How a [`SharedList`] is to be made: with more room than its first values take, or under a name.
#[derive(Clone, Debug, Default)]
#[must_use = "nothing is made before `create`"]
pub struct SharedListBuilder {
    room: usize,
    name: Option<String>,
}

impl SharedListBuilder {
    /// Gives every slot room for at least that many bytes of text or bytes. (Numbers fit in every slot.)
    pub fn room(mut self, bytes: usize) -> Self {
        self.room = bytes;
        self
    }

    /// Puts the list under a name, by which [`SharedList::open`] finds it. It stays until it's unlinked.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Makes the list, with these values in its slots.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if the name is taken; `InvalidInput` if the name can't be one, or a slot is of 4 GiB or more; or
    /// what the system says.
    pub fn create(self, items: impl IntoIterator<Item = ListItem>) -> io::Result<SharedList> {
        let items: Vec<ListItem> = items.into_iter().collect();
        let rooms: Vec<usize> = items.iter().map(|item| room_for(item).max(round_up(self.room))).collect();
        let (places, len) = lay_out(&rooms).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "a slot of the list is of 4 GiB or more, or all together can't be addressed",
            )
        })?;
        let fill = |segment: &Segment| {
            let head: &Head = segment.at(0);
            head.count.store(places.len() as u64, Ordering::Relaxed);
            for (word, place) in segment.slice::<AtomicU64>(size_of::<Head>(), places.len()).iter().zip(&places) {
                word.store(place.room as u64, Ordering::Relaxed);
            }
            for (place, item) in places.iter().zip(&items) {
                write(segment, place.copy(0), item);
            }
            head.magic.store(MAGIC, Ordering::Release);
        };
        let segment = match &self.name {
            Some(name) => name::create(name, len, fill)?,
            None => {
                let segment = Segment::create(len)?;
                fill(&segment);
                segment
            }
        };
        Ok(SharedList { segment, places: places.into(), name: self.name.as_deref().map(Name::new) })
    }
}

fn round_up(bytes: usize) -> usize {
    bytes.checked_next_multiple_of(8).unwrap_or(usize::MAX).max(8)
}

fn room_for(item: &ListItem) -> usize {
    round_up(item.len())
}

/// Where the slots with these rooms stand, and how long it all is.
fn lay_out(rooms: &[usize]) -> Option<(Vec<Place>, usize)> {
    let table = size_of::<Head>().checked_add(rooms.len().checked_mul(8)?)?;
    let mut offset = table.checked_next_multiple_of(64)?;
    let mut places = Vec::with_capacity(rooms.len());
    for &room in rooms {
        if u32::try_from(room).is_err() || !room.is_multiple_of(8) || room == 0 {
            return None;
        }
        places.push(Place { offset, room });
        // Each in cache lines of its own, so that writers of neighbours don't slow each other down.
        offset = offset.checked_add((size_of::<SlotHead>() + 2 * (size_of::<u64>() + room)).next_multiple_of(64))?;
    }
    isize::try_from(offset).is_ok().then_some((places, offset))
}

#[inline]
fn write(segment: &Segment, at: usize, item: &ListItem) {
    let header = |len: usize| u64::from(item.tag()) | (len as u64) << 32;
    match item.payload() {
        Ok(word) => {
            segment.at::<AtomicU64>(at).store(header(8), Ordering::Relaxed);
            segment.at::<AtomicU64>(at + 8).store(word, Ordering::Relaxed);
        }
        Err(bytes) => {
            segment.at::<AtomicU64>(at).store(header(bytes.len()), Ordering::Relaxed);
            segment.store(at + 8, bytes);
        }
    }
}

/// What stands in the first two words of a copy; it may be anything.
#[inline]
fn words(segment: &Segment, at: usize) -> (u64, u64) {
    let words: &[AtomicU64; 2] = segment.at(at);
    (words[0].load(Ordering::Relaxed), words[1].load(Ordering::Relaxed))
}

/// The item of a copy that is these two words; `None` if it's longer, or none at all.
#[inline]
fn short(words: (u64, u64)) -> Option<ListItem> {
    match words.0 as u8 {
        0 => Some(ListItem::None),
        1 => Some(ListItem::Bool(words.1 != 0)),
        2 => Some(ListItem::Int(words.1.cast_signed())),
        3 => Some(ListItem::Float(f64::from_bits(words.1))),
        _ => None,
    }
}

/// The item of a copy; what stands there may be anything.
fn read(segment: &Segment, at: usize, room: usize) -> Option<ListItem> {
    let words = words(segment, at);
    let (tag, len) = (words.0 as u8, (words.0 >> 32) as usize);
    if !matches!(tag, 4 | 5) {
        return short(words);
    }
    if len > room {
        return None;
    }
    let mut bytes = vec![0; len];
    segment.load(at + 8, &mut bytes);
    match tag {
        4 => String::from_utf8(bytes).ok().map(ListItem::Str),
        _ => Some(ListItem::Bytes(bytes)),
    }
}

impl SharedList {
    /// A list with these items. Each slot has the room that its item takes, rounded up to a multiple of eight bytes.
    ///
    /// # Errors
    ///
    /// What the system says when there is no memory; `InvalidInput` if an item is of 4 GiB or more.
    pub fn new(items: impl IntoIterator<Item = ListItem>) -> io::Result<Self> {
        SharedList::builder().create(items)
    }

    /// For a list with a name or with more room in its slots.
    ///
    /// # Examples
    ///
    /// ```
    /// use polypool_ipc::SharedList;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let list = SharedList::builder().room(100).create(["".into(), ().into()])?;
    /// list.set(1, "x".repeat(100))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> SharedListBuilder {
        SharedListBuilder::default()
    }

    /// Attaches to the list of that name (Python: `ShareableList(name=...)`).
    ///
    /// # Errors
    ///
    /// `NotFound` if there's none, `InvalidInput` for a name that can't be one, `InvalidData` if what has the name is
    /// no list, or what the system says.
    pub fn open(name: &str) -> io::Result<Self> {
        SharedList::over(name::open(name)?, Some(Name::new(name)))
    }

    fn over(segment: Arc<Segment>, name: Option<Name>) -> io::Result<Self> {
        let no_list = || io::Error::new(io::ErrorKind::InvalidData, "this shared memory does not hold a list");
        if segment.len() < size_of::<Head>() || segment.at::<Head>(0).magic.load(Ordering::Acquire) != MAGIC {
            return Err(no_list());
        }
        let count = usize::try_from(segment.at::<Head>(0).count.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        // As many as there are of it: a count beyond that is a lie.
        let table = segment.slice::<AtomicU64>(size_of::<Head>(), count);
        let rooms: Vec<usize> =
            table.iter().map(|room| usize::try_from(room.load(Ordering::Relaxed)).unwrap_or(usize::MAX)).collect();
        match lay_out(&rooms) {
            Some((places, len)) if table.len() == count && len <= segment.len() => {
                Ok(SharedList { segment, places: places.into(), name })
            }
            _ => Err(no_list()),
        }
    }

    /// Takes this list's name away; those who have it keep it.
    ///
    /// # Errors
    ///
    /// As [`SharedMemory::unlink`](crate::SharedMemory::unlink). (A name alone is unlinked by
    /// [`SharedMemory::unlink_name`](crate::SharedMemory::unlink_name).)
    pub fn unlink(&self) -> io::Result<()> {
        match &self.name {
            Some(name) => name.unlink(&self.segment),
            None => Err(io::Error::new(io::ErrorKind::InvalidInput, "this shared list has no name to unlink")),
        }
    }

    /// As [`SharedMemory::unlink_on_drop`](crate::SharedMemory::unlink_on_drop).
    #[must_use = "the name is taken away when the returned handle is dropped"]
    pub fn unlink_on_drop(mut self) -> Self {
        if let Some(name) = &mut self.name {
            name.own(&self.segment);
        }
        self
    }

    /// The name under which it was created or opened, if it has one.
    #[must_use = "it has no effect but its result"]
    pub fn name(&self) -> Option<&str> {
        self.name.as_ref().map(|name| &*name.name)
    }

    /// How many slots there are.
    #[must_use = "it has no effect but its result"]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are no slots at all.
    #[must_use = "it has no effect but its result"]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether both are handles of the same list.
    #[must_use = "it has no effect but its result"]
    pub fn is_same(&self, other: &SharedList) -> bool {
        Arc::ptr_eq(&self.segment, &other.segment)
    }

    /// How many bytes of text or bytes a slot can hold.
    ///
    /// # Errors
    ///
    /// [`ListError::OutOfRange`] if there's no such slot.
    pub fn room(&self, index: usize) -> Result<usize, ListError> {
        self.place(index).map(|place| place.room)
    }

    /// The item in a slot. Never waits for a writer.
    ///
    /// # Errors
    ///
    /// [`ListError::OutOfRange`] if there's no such slot; `Damaged` or `Lost` if another process has spoilt it.
    #[inline]
    pub fn get(&self, index: usize) -> Result<ListItem, ListError> {
        let place = self.place(index)?;
        let slot: &SlotHead = self.segment.at(place.offset);
        if let Some(item) = twin::read(&slot.version, |which| words(&self.segment, place.copy(which))).and_then(short)
            && !self.segment.is_lost()
        {
            return Ok(item);
        }
        self.get_long(index, place)
    }

    /// Text, bytes, and what goes wrong.
    #[inline(never)]
    fn get_long(&self, index: usize, place: Place) -> Result<ListItem, ListError> {
        let slot: &SlotHead = self.segment.at(place.offset);
        let copy = |which| read(&self.segment, place.copy(which), place.room);
        let item = match twin::read(&slot.version, copy) {
            Some(item) => item,
            None => self.read_changing(place),
        };
        self.check_lost()?;
        item.ok_or(ListError::Damaged { index })
    }

    /// The item of a slot that has kept changing under our eyes: under the lock, behind which nothing does, or as soon
    /// as it holds still. So a writer that does something else meanwhile, or is stopped, isn't waited for.
    #[cold]
    fn read_changing(&self, place: Place) -> Option<ListItem> {
        let slot: &SlotHead = self.segment.at(place.offset);
        let copy = |which| read(&self.segment, place.copy(which), place.room);
        loop {
            if let Some(_lock) = self.mutex(place).lock_until(wait::after(Duration::from_millis(1))) {
                return twin::read_locked(&slot.version, copy);
            }
            if let Some(item) = twin::read(&slot.version, copy) {
                return item;
            }
        }
    }

    /// Puts an item into a slot, and waits as long as another one writes to it. Others see either the old one or the
    /// new one.
    ///
    /// # Errors
    ///
    /// [`ListError::OutOfRange`] if there's no such slot; `TooLong` if the item doesn't fit; `Lost` if another process
    /// has truncated it.
    #[inline]
    pub fn set(&self, index: usize, item: impl Into<ListItem>) -> Result<(), ListError> {
        let item = item.into();
        let place = self.place(index)?;
        check_room(&item, index, place)?;
        self.put(place, &item, self.mutex(place).lock())
    }

    /// As [`set`](SharedList::set), if nobody else is writing to the slot.
    ///
    /// # Errors
    ///
    /// [`ListError::WouldBlock`] if somebody is; otherwise as for [`set`](SharedList::set).
    pub fn try_set(&self, index: usize, item: impl Into<ListItem>) -> Result<(), ListError> {
        let item = item.into();
        let place = self.place(index)?;
        check_room(&item, index, place)?;
        self.put(place, &item, self.try_lock(index, place)?)
    }

    /// As [`set`](SharedList::set), but waits no longer than `timeout` for those who write to the slot.
    ///
    /// # Errors
    ///
    /// [`ListError::TimedOut`] if somebody was writing to it all the time; otherwise as for [`set`](SharedList::set).
    pub fn set_timeout(&self, index: usize, item: impl Into<ListItem>, timeout: Duration) -> Result<(), ListError> {
        let item = item.into();
        let place = self.place(index)?;
        check_room(&item, index, place)?;
        self.put(place, &item, self.lock_within(index, place, timeout)?)
    }

    /// As [`set`](SharedList::set), without blocking the thread. (That a writer was killed shows after half a second at
    /// most.)
    ///
    /// **Cancellation:** dropped before it is done, it has changed nothing.
    ///
    /// # Errors
    ///
    /// As for [`set`](SharedList::set).
    pub async fn set_async(&self, index: usize, item: impl Into<ListItem>) -> Result<(), ListError> {
        let item = item.into();
        let place = self.place(index)?;
        check_room(&item, index, place)?;
        let lock = self.lock_async(place).await;
        self.put(place, &item, lock)
    }

    /// Changes an item as one step, which no other `set` or `update` of this slot comes in between of; waits as long as
    /// another one writes to it.
    ///
    /// Keep `change` short: others who write to the slot wait meanwhile. It must not write to the same slot
    /// itself, which would wait for ever. If it panics, or the process is killed in it, the slot keeps its old item.
    ///
    /// # Errors
    ///
    /// As for [`get`](SharedList::get) and [`set`](SharedList::set).
    ///
    /// # Panics
    ///
    /// If `change` does; the slot keeps its old item.
    pub fn update<R>(&self, index: usize, change: impl FnOnce(&mut ListItem) -> R) -> Result<R, ListError> {
        let place = self.place(index)?;
        self.change(index, place, self.mutex(place).lock(), change)
    }

    /// As [`update`](SharedList::update), if nobody else is writing to the slot.
    ///
    /// # Errors
    ///
    /// [`ListError::WouldBlock`] if somebody is; otherwise as for [`update`](SharedList::update).
    ///
    /// # Panics
    ///
    /// If `change` does; the slot keeps its old item.
    pub fn try_update<R>(&self, index: usize, change: impl FnOnce(&mut ListItem) -> R) -> Result<R, ListError> {
        let place = self.place(index)?;
        self.change(index, place, self.try_lock(index, place)?, change)
    }

    /// As [`update`](SharedList::update), but waits no longer than `timeout` for those who write to the slot.
    ///
    /// # Errors
    ///
    /// [`ListError::TimedOut`] if somebody was writing to it all the time; otherwise as for
    /// [`update`](SharedList::update).
    ///
    /// # Panics
    ///
    /// If `change` does; the slot keeps its old item.
    pub fn update_timeout<R>(
        &self,
        index: usize,
        timeout: Duration,
        change: impl FnOnce(&mut ListItem) -> R,
    ) -> Result<R, ListError> {
        let place = self.place(index)?;
        self.change(index, place, self.lock_within(index, place, timeout)?, change)
    }

    /// As [`update`](SharedList::update), without blocking the thread while it waits. (That a writer was killed shows
    /// after half a second at most.)
    ///
    /// **Cancellation:** dropped before it is done, it has changed nothing.
    ///
    /// # Errors
    ///
    /// As for [`update`](SharedList::update).
    ///
    /// # Panics
    ///
    /// If `change` does; the slot keeps its old item.
    pub async fn update_async<R>(&self, index: usize, change: impl FnOnce(&mut ListItem) -> R) -> Result<R, ListError> {
        let place = self.place(index)?;
        let lock = self.lock_async(place).await;
        self.change(index, place, lock, change)
    }

    #[inline]
    fn mutex(&self, place: Place) -> PidMutex<'_> {
        PidMutex::new(&self.segment, place.offset + offset_of!(SlotHead, lock))
    }

    fn try_lock(&self, index: usize, place: Place) -> Result<PidLock<'_>, ListError> {
        self.mutex(place).try_lock().ok_or(ListError::WouldBlock { index })
    }

    fn lock_within(&self, index: usize, place: Place, timeout: Duration) -> Result<PidLock<'_>, ListError> {
        let mutex = self.mutex(place);
        mutex.try_lock().or_else(|| mutex.lock_until(wait::after(timeout))).ok_or(ListError::TimedOut { index })
    }

    fn lock_async(&self, place: Place) -> impl Future<Output = PidLock<'_>> + Send {
        let (mutex, mut slept) = (self.mutex(place), false);
        Waiting::new(move || mutex.step(&mut slept))
    }

    /// Under the lock; gives it back.
    #[inline]
    fn put(&self, place: Place, item: &ListItem, lock: PidLock<'_>) -> Result<(), ListError> {
        let slot: &SlotHead = self.segment.at(place.offset);
        twin::publish(&slot.version, |which| write(&self.segment, place.copy(which), item));
        drop(lock);
        self.check_lost()
    }

    /// Under the lock; gives it back.
    fn change<R>(
        &self,
        index: usize,
        place: Place,
        lock: PidLock<'_>,
        change: impl FnOnce(&mut ListItem) -> R,
    ) -> Result<R, ListError> {
        let slot: &SlotHead = self.segment.at(place.offset);
        let item = twin::read_locked(&slot.version, |which| read(&self.segment, place.copy(which), place.room));
        self.check_lost()?;
        let mut item = item.ok_or(ListError::Damaged { index })?;
        let result = change(&mut item);
        check_room(&item, index, place)?;
        if lock.is_mine() {
            twin::publish(&slot.version, |which| write(&self.segment, place.copy(which), &item));
        }
        drop(lock);
        self.check_lost()?;
        Ok(result)
    }

    /// All items, each as it is when its turn comes.
    ///
    /// # Errors
    ///
    /// As for [`get`](SharedList::get).
    pub fn to_vec(&self) -> Result<Vec<ListItem>, ListError> {
        self.iter().collect()
    }

    /// The items one by one, each as it is when its turn comes.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Result<ListItem, ListError>> + use<'_> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// How many slots hold that item.
    ///
    /// # Errors
    ///
    /// As for [`get`](SharedList::get).
    pub fn count(&self, item: impl Into<ListItem>) -> Result<usize, ListError> {
        let item = item.into();
        self.iter().try_fold(0, |count, it| Ok(count + usize::from(it? == item)))
    }

    /// The first slot that holds that item.
    ///
    /// # Errors
    ///
    /// As for [`get`](SharedList::get).
    pub fn index(&self, item: impl Into<ListItem>) -> Result<Option<usize>, ListError> {
        let item = item.into();
        for (index, it) in self.iter().enumerate() {
            if it? == item {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Whether a slot holds that item.
    ///
    /// # Errors
    ///
    /// As for [`get`](SharedList::get).
    pub fn contains(&self, item: impl Into<ListItem>) -> Result<bool, ListError> {
        self.index(item).map(|found| found.is_some())
    }

    #[inline]
    fn place(&self, index: usize) -> Result<Place, ListError> {
        self.places.get(index).copied().ok_or(ListError::OutOfRange { index, len: self.len() })
    }

    #[inline]
    fn check_lost(&self) -> Result<(), ListError> {
        if self.segment.is_lost() { Err(ListError::Lost) } else { Ok(()) }
    }
}

#[inline]
fn check_room(item: &ListItem, index: usize, place: Place) -> Result<(), ListError> {
    let needed = item.len();
    if needed <= place.room { Ok(()) } else { Err(ListError::TooLong { index, needed, room: place.room }) }
}

impl fmt::Debug for SharedList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        for item in self.iter() {
            match item {
                Ok(item) => list.entry(&item),
                Err(error) => list.entry(&error),
            };
        }
        list.finish()
    }
}

impl Serialize for SharedList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.segment.fd(), self.name()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SharedList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (fd, name) = <(Fd, Option<String>)>::deserialize(deserializer)?;
        let segment = Segment::open_any(&fd, size_of::<Head>()).map_err(D::Error::custom)?;
        SharedList::over(segment, name.as_deref().map(Name::new)).map_err(D::Error::custom)
    }
}
