//! Shared memory as plain bytes (Python's `multiprocessing.shared_memory.SharedMemory`).
//!
//! # Anonymous or named
//!
//! *Anonymous* memory ([`SharedMemory::new`]) is the usual kind. It reaches other processes as a handle: as an argument
//! or result of a task, or in a message. The kernel frees it with the last handle, however its owners end; nothing can
//! leak.
//!
//! *Named* memory ([`create_new`](SharedMemory::create_new), [`open`](SharedMemory::open)) is found by its name by
//! processes that have nothing else in common. It stays until somebody unlinks it, also when all processes have ended
//! or were killed; that's what a name is for. A creator that wants it to go with its handle says
//! [`unlink_on_drop`](SharedMemory::unlink_on_drop).
//!
//! # Soundness
//!
//! Other processes may write at any moment, so the memory is never lent as `&[u8]`: it's copied in and out at the speed
//! of the memory, or looked at in place as [atomics](SharedMemory::as_atomic_bytes). A copy that meets a writer may be
//! torn, some bytes old and some new; use a [`Value`](crate::Value) or [`Array`](crate::Array) for what must not be.
//! What remains outside of the letter of the memory model is that atomics of different sizes may meet on the same
//! bytes, which it leaves open and all hardware defines.
//!
//! Anonymous memory is sealed: nobody can make it smaller under us. Named memory can't be sealed, so it's watched: when
//! somebody truncates it, every operation fails with [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) instead of ending
//! the process by a SIGBUS. (For this, the first named memory of a process installs a handler of SIGBUS, which passes
//! on everything else.)

use std::fmt;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::name::{self, Name};
use super::segment::Segment;
use crate::travel::Fd;

/// A block of bytes that several processes have in their memory at once.
///
/// A handle: cheap to clone, and sending it to another process sends the handle and not the bytes. Python's equivalent
/// is `multiprocessing.shared_memory.SharedMemory`.
///
/// *Anonymous* memory ([`new`](SharedMemory::new)) is freed with its last handle, however the processes end. *Named*
/// memory ([`create_new`](SharedMemory::create_new), [`open`](SharedMemory::open)) stays until its name is
/// [unlinked](SharedMemory::unlink).
///
/// Others may write at any moment, so the bytes are copied in and out, or seen in place as
/// [atomics](SharedMemory::as_atomic_bytes). A copy that meets a writer may be torn; what must not be is for a
/// [`Value`](crate::Value) or [`Array`](crate::Array). Anonymous memory is sealed against truncation; if somebody
/// truncates named memory, every operation fails with [`UnexpectedEof`](io::ErrorKind::UnexpectedEof). (For that, the
/// first named memory of a process installs a handler of SIGBUS, which passes on whatever isn't about such memory.)
///
/// # Examples
///
/// ```
/// use polypool_ipc::SharedMemory;
///
/// # fn main() -> std::io::Result<()> {
/// let memory = SharedMemory::new(4096)?;
/// memory.write_at(10, b"hello")?;
/// assert_eq!(memory.to_vec()?[10..15], *b"hello");
/// memory.write(64, &[1.5_f64, 2.5])?;
/// assert_eq!(memory.read::<f64>(72)?, 2.5);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SharedMemory {
    segment: Arc<Segment>,
    name: Option<Name>,
}

impl SharedMemory {
    /// Anonymous memory of `len` bytes, all zero. It's freed with its last handle in any process.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a length of zero, or one that can't be addressed; or what the system says.
    pub fn new(len: usize) -> io::Result<Self> {
        check_len(len)?;
        Ok(SharedMemory { segment: Segment::create(len)?, name: None })
    }

    /// New memory under a name (Python: `SharedMemory(name, create=True, size)`). It stays until it's
    /// [unlinked](SharedMemory::unlink).
    ///
    /// Only processes of the same user can open it. The room is taken at once, so a full `/dev/shm` (64 MiB by default
    /// in containers) is an error here and not a fault later.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if the name is taken; `InvalidInput` for a length of zero, and for a name that is empty, longer
    /// than 255 bytes, `.` or `..`, or contains a slash or a zero byte; or what the system says, for example that there
    /// is no room.
    ///
    /// # Examples
    ///
    /// ```
    /// use polypool_ipc::SharedMemory;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let name = format!("doc-{}", std::process::id());
    /// let memory = SharedMemory::create_new(&name, 100)?.unlink_on_drop();
    /// memory.write_at(0, b"for all who know the name")?;
    /// // In another process:
    /// let attached = SharedMemory::open(&name)?;
    /// assert_eq!(attached.to_vec()?[..7], *b"for all");
    /// # Ok(())
    /// # }
    /// ```
    pub fn create_new(name: &str, len: usize) -> io::Result<Self> {
        check_len(len)?;
        Ok(SharedMemory { segment: name::create(name, len, |_| ())?, name: Some(Name::new(name)) })
    }

    /// As [`create_new`](SharedMemory::create_new), but opens the memory if the name is taken by memory of exactly this
    /// length.
    ///
    /// # Errors
    ///
    /// As `create_new`; `AlreadyExists` only if the memory there has another length.
    pub fn create(name: &str, len: usize) -> io::Result<Self> {
        // Between a refusal to create and the attempt to open, somebody may unlink it, and the other way round.
        for _ in 0..100 {
            match SharedMemory::create_new(name, len) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => return other,
            }
            match SharedMemory::open(name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(memory) if memory.len() != len => {
                    return Err(io::Error::new(
                        io::ErrorKind::AlreadyExists,
                        format!("shared memory {name:?} has {} bytes already, not {len}", memory.len()),
                    ));
                }
                other => return other,
            }
        }
        Err(io::Error::new(io::ErrorKind::WouldBlock, format!("others keep creating and unlinking {name:?}")))
    }

    /// Attaches to the memory of that name.
    ///
    /// When this handle is dropped, or its process ends, the memory stays.
    ///
    /// # Errors
    ///
    /// `NotFound` if there's none, `InvalidInput` for a name that can't be one, `InvalidData` if it's empty, or what
    /// the system says.
    pub fn open(name: &str) -> io::Result<Self> {
        Ok(SharedMemory { segment: name::open(name)?, name: Some(Name::new(name)) })
    }

    /// Takes a name away. The memory itself goes with the last handle.
    ///
    /// # Errors
    ///
    /// `NotFound` if there's no such name (any more), `InvalidInput` for a name that can't be one, or what the system
    /// says.
    pub fn unlink_name(name: &str) -> io::Result<()> {
        name::unlink(name)
    }

    /// Takes this memory's name away, so that nobody finds it any more; those who have it keep it.
    ///
    /// # Errors
    ///
    /// `NotFound` if that has happened already, also if other memory has got the name since; `InvalidInput` if it never
    /// had one.
    pub fn unlink(&self) -> io::Result<()> {
        match &self.name {
            Some(name) => name.unlink(&self.segment),
            None => Err(io::Error::new(io::ErrorKind::InvalidInput, "this shared memory has no name to unlink")),
        }
    }

    /// Has the name taken away when this handle and the clones made of it in this process from now on are gone.
    ///
    /// A SIGKILL leaves the name behind; memory that must not be left behind has no name. No effect on anonymous
    /// memory.
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

    /// How many bytes it has. Never zero, and never changes.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    #[must_use = "it has no effect but its result"]
    pub fn len(&self) -> usize {
        self.segment.len()
    }

    /// Whether both are handles of the same memory.
    #[must_use = "it has no effect but its result"]
    pub fn is_same(&self, other: &SharedMemory) -> bool {
        Arc::ptr_eq(&self.segment, &other.segment)
    }

    /// Copies bytes out. What others write at the same moment may be seen in part.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the range isn't inside; `UnexpectedEof` if named memory has been truncated by somebody.
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> io::Result<()> {
        self.check_range(offset, to.len())?;
        self.segment.load(offset, to);
        self.check_lost()
    }

    /// Copies bytes in. Others may see them in part at first.
    ///
    /// # Errors
    ///
    /// As for [`read_at`](SharedMemory::read_at).
    pub fn write_at(&self, offset: usize, from: &[u8]) -> io::Result<()> {
        self.check_range(offset, from.len())?;
        self.segment.store(offset, from);
        self.check_lost()
    }

    /// A copy of all bytes.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if named memory has been truncated by somebody.
    pub fn to_vec(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.len()];
        self.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Sets all bytes to one value.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if named memory has been truncated by somebody.
    pub fn fill(&self, byte: u8) -> io::Result<()> {
        let block = [byte; 16 * 1024];
        for start in (0..self.len()).step_by(block.len()) {
            self.segment.store(start, &block[..block.len().min(self.len() - start)]);
        }
        self.check_lost()
    }

    /// Copies a value of plain data out: a number, an array of them, a struct that derives zerocopy's traits.
    ///
    /// # Errors
    ///
    /// As for [`read_at`](SharedMemory::read_at).
    #[inline]
    pub fn read<T: FromBytes + IntoBytes>(&self, offset: usize) -> io::Result<T> {
        self.check_range(offset, size_of::<T>())?;
        let mut value = T::new_zeroed();
        self.segment.load(offset, value.as_mut_bytes());
        self.check_lost()?;
        Ok(value)
    }

    /// Copies a value of plain data in.
    ///
    /// # Errors
    ///
    /// As for [`read_at`](SharedMemory::read_at).
    #[inline]
    pub fn write<T: IntoBytes + Immutable + ?Sized>(&self, offset: usize, value: &T) -> io::Result<()> {
        self.check_range(offset, size_of_val(value))?;
        self.segment.store(offset, value.as_bytes());
        self.check_lost()
    }

    /// The bytes in place, without a copy.
    ///
    /// All zero from the moment on at which somebody truncates named memory; [`is_lost`](SharedMemory::is_lost) says
    /// so.
    #[must_use = "it has no effect but its result"]
    pub fn as_atomic_bytes(&self) -> &[AtomicU8] {
        self.segment.slice(0, usize::MAX)
    }

    /// The memory in place as numbers of 32 bits, in this machine's byte order; up to three bytes at the end are left
    /// out.
    #[must_use = "it has no effect but its result"]
    pub fn as_atomic_u32s(&self) -> &[AtomicU32] {
        self.segment.slice(0, usize::MAX)
    }

    /// The memory in place as numbers of 64 bits, in this machine's byte order; up to seven bytes at the end are left
    /// out.
    #[must_use = "it has no effect but its result"]
    pub fn as_atomic_u64s(&self) -> &[AtomicU64] {
        self.segment.slice(0, usize::MAX)
    }

    /// Whether somebody has truncated this named memory, so that its content is gone and nothing is shared any more.
    /// Never true for anonymous memory.
    #[must_use = "it has no effect but its result"]
    pub fn is_lost(&self) -> bool {
        self.segment.is_lost()
    }

    /// A reader and writer that starts at the first byte and ends at the last.
    #[must_use = "it has no effect but its result"]
    pub fn cursor(&self) -> SharedMemoryCursor {
        SharedMemoryCursor { memory: self.clone(), position: 0 }
    }

    fn check_range(&self, offset: usize, count: usize) -> io::Result<()> {
        if offset.checked_add(count).is_some_and(|end| end <= self.len()) {
            Ok(())
        } else {
            Err(self.outside(offset, count))
        }
    }

    #[cold]
    fn outside(&self, offset: usize, count: usize) -> io::Error {
        let len = self.len();
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{count} bytes from {offset} on are not all inside of the shared memory, which has {len}"),
        )
    }

    #[inline]
    fn check_lost(&self) -> io::Result<()> {
        if self.segment.is_lost() { Err(lost(self.name())) } else { Ok(()) }
    }
}

#[cold]
pub(crate) fn lost(name: Option<&str>) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("somebody has truncated the shared memory {:?}, and its content is gone", name.unwrap_or_default()),
    )
}

pub(crate) fn check_len(len: usize) -> io::Result<()> {
    match len {
        0 => Err(io::Error::new(io::ErrorKind::InvalidInput, "shared memory of zero bytes can't be made")),
        _ if isize::try_from(len).is_err() => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{len} bytes are more than can be addressed")))
        }
        _ => Ok(()),
    }
}

impl AsFd for SharedMemory {
    /// The descriptor of the memory, for those who map it by their own means.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.segment.fd().as_fd()
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory").field("len", &self.len()).field("name", &self.name()).finish()
    }
}

impl Serialize for SharedMemory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.segment.fd(), self.name()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SharedMemory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (fd, name) = <(Fd, Option<String>)>::deserialize(deserializer)?;
        let segment = Segment::open_any(&fd, 1).map_err(D::Error::custom)?;
        Ok(SharedMemory { segment, name: name.as_deref().map(Name::new) })
    }
}

/// Reads, writes and seeks in a [`SharedMemory`], as in a file of fixed length.
#[derive(Clone, Debug)]
pub struct SharedMemoryCursor {
    memory: SharedMemory,
    position: u64,
}

impl SharedMemoryCursor {
    /// The next byte to be read or written.
    #[must_use = "it has no effect but its result"]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The offset, and how many of `count` bytes there are from it on.
    fn room(&self, count: usize) -> (usize, usize) {
        let offset = usize::try_from(self.position).unwrap_or(usize::MAX).min(self.memory.len());
        (offset, count.min(self.memory.len() - offset))
    }
}

impl io::Read for SharedMemoryCursor {
    /// Reads what there is; zero bytes at the end.
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let (offset, count) = self.room(to.len());
        self.memory.read_at(offset, &mut to[..count])?;
        self.position += count as u64;
        Ok(count)
    }
}

impl io::Write for SharedMemoryCursor {
    /// Writes as much as fits; zero bytes at the end, which `write_all` makes an error.
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let (offset, count) = self.room(from.len());
        self.memory.write_at(offset, &from[..count])?;
        self.position += count as u64;
        Ok(count)
    }

    /// Nothing to do: what is written is there.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl io::Seek for SharedMemoryCursor {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let (base, delta) = match to {
            io::SeekFrom::Start(position) => (Some(position), 0),
            io::SeekFrom::End(delta) => ((self.memory.len() as u64).checked_add_signed(delta), delta),
            io::SeekFrom::Current(delta) => (self.position.checked_add_signed(delta), delta),
        };
        self.position = base.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("a seek by {delta} leads before the first byte"))
        })?;
        Ok(self.position)
    }
}
