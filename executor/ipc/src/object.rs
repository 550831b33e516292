//! What all shared objects have in common: a segment of their own, the board on which their holders sit, and the way
//! they travel.
//!
//! An object begins with a head that says what it is ([`Kind`], and the size of what is in it), so that a handle of one
//! kind can't be opened as another one. It travels as two descriptors: its memory and its board. The kernel counts the
//! owners, also of handles that are on their way; nothing else does, and so nothing is left when all of them are
//! killed.

use std::fmt;
use std::io;
use std::mem::size_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::memory::segment::{Layout, Segment};
use crate::presence::Board;
use crate::travel::Fd;

/// What an object is, as its head says it: four letters.
pub(crate) type Kind = [u8; 4];

const MAGIC: u64 = u64::from_le_bytes(*b"pp-obj-1");

#[repr(C, align(64))]
struct Head {
    magic: AtomicU64,
    kind: AtomicU32,
    unused: AtomicU32,
    /// What the type parameter of the object looks like: its size and alignment, so that an honest mistake is noticed.
    shape: AtomicU64,
}

// SAFETY: repr(C) and atomics only.
unsafe impl Layout for Head {}

/// Where the memory of the object itself begins.
pub(crate) const BODY: usize = size_of::<Head>();

const _: () = assert!(BODY == 64);

/// A shared object: what every typed handle wraps.
#[derive(Clone)]
pub(crate) struct Object {
    segment: Arc<Segment>,
    board: Arc<Board>,
}

impl Object {
    /// A new object with a body of `len` bytes, all zero, in a segment of its own.
    pub(crate) fn create(kind: Kind, shape: u64, len: usize) -> io::Result<Self> {
        let board = Board::own()?;
        let whole = BODY.checked_add(len).filter(|whole| isize::try_from(*whole).is_ok()).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("an object of {len} bytes does not fit in memory"))
        })?;
        let segment = Segment::create_for(whole, u32::from_le_bytes(kind))?;
        let head: &Head = segment.at(0);
        head.kind.store(u32::from_le_bytes(kind), Ordering::Relaxed);
        head.shape.store(shape, Ordering::Relaxed);
        head.magic.store(MAGIC, Ordering::Release);
        Ok(Object { segment, board })
    }

    /// The object behind two descriptors, whose body must have at least `least` bytes.
    pub(crate) fn open(kind: Kind, shape: u64, least: usize, memory: &Fd, board: &Fd) -> io::Result<Self> {
        let segment = Segment::open_for(memory, BODY.saturating_add(least), u32::from_le_bytes(kind))?;
        let head: &Head = segment.at(0);
        let says = (
            head.magic.load(Ordering::Acquire),
            head.kind.load(Ordering::Relaxed).to_le_bytes(),
            head.shape.load(Ordering::Relaxed),
        );
        if says != (MAGIC, kind, shape) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "a handle was expected to be of kind {:?} and shape {shape:#x}, but the memory is of kind {:?} and shape {:#x}",
                    kind.escape_ascii().to_string(),
                    says.1.escape_ascii().to_string(),
                    says.2,
                ),
            ));
        }
        Ok(Object { segment, board: Board::join(board)? })
    }

    /// The structure of atomics at `offset` of the body.
    #[inline]
    pub(crate) fn at<T: Layout>(&self, offset: usize) -> &T {
        self.segment.at(BODY + offset)
    }

    /// How long the body is.
    pub(crate) fn len(&self) -> usize {
        self.segment.len() - BODY
    }

    /// Copies out of the body.
    #[inline]
    pub(crate) fn load(&self, offset: usize, to: &mut [u8]) {
        self.segment.load(BODY + offset, to);
    }

    /// Copies into the body.
    #[inline]
    pub(crate) fn store(&self, offset: usize, from: &[u8]) {
        self.segment.store(BODY + offset, from);
    }

    #[inline]
    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    #[inline]
    pub(crate) fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Whether both are handles of the same object.
    pub(crate) fn is(&self, other: &Object) -> bool {
        Arc::ptr_eq(&self.segment, &other.segment)
    }

    pub(crate) fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.segment.fd(), self.board.segment().fd()).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
        kind: Kind,
        shape: u64,
        least: usize,
    ) -> Result<Self, D::Error> {
        let (memory, board) = <(Fd, Fd)>::deserialize(deserializer)?;
        Object::open(kind, shape, least, &memory, &board).map_err(D::Error::custom)
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object").field("len", &self.len()).field("board", &self.board).finish_non_exhaustive()
    }
}

/// The shape of a type: what is compared when a handle arrives.
pub(crate) const fn shape_of<T>() -> u64 {
    (size_of::<T>() as u64) << 8 | align_of::<T>() as u64
}
