//! How a descriptor becomes part of a message: packed while the message is encoded, unpacked while it is decoded.
//!
//! A handle (of shared memory, a lock, a queue) is a descriptor, and a descriptor can't be written into bytes. So
//! whoever encodes a message does it inside of [`pack`]: each [`Fd`] that is serialised there puts its descriptor into
//! the message's [`Luggage`] and writes only its place in it. The luggage goes beside the bytes, through a socket of
//! its own ([`Luggage::sending`]) or with the bytes by [`send_with_fds`](crate::send_with_fds), and the receiver
//! decodes inside of [`unpack`]. Encoded anywhere else, a handle is an error that says so.

use std::cell::RefCell;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

thread_local! {
    static PACKING: RefCell<Option<Vec<Arc<OwnedFd>>>> = const { RefCell::new(None) };
    static UNPACKING: RefCell<Option<Luggage>> = const { RefCell::new(None) };
}

/// The descriptors that belong to one encoded message, in the order in which the message names them.
///
/// Cheap to clone; the descriptors close with the last clone.
#[derive(Clone, Debug, Default)]
pub struct Luggage {
    /// `None`: there are none. Most messages have none, and for them nothing is allocated.
    fds: Option<Arc<[Arc<OwnedFd>]>>,
}

impl Luggage {
    /// The luggage as it was received.
    #[must_use = "dropping it closes the descriptors"]
    pub fn new(fds: Vec<OwnedFd>) -> Self {
        Luggage::of(fds.into_iter().map(Arc::new).collect())
    }

    /// How many descriptors there are.
    #[must_use = "it has no effect but its result"]
    pub fn len(&self) -> usize {
        self.all().len()
    }

    /// Whether the message has none, as most have.
    #[must_use = "it has no effect but its result"]
    pub fn is_empty(&self) -> bool {
        self.fds.is_none()
    }

    /// The descriptors, to be sent.
    pub fn fds(&self) -> impl ExactSizeIterator<Item = BorrowedFd<'_>> {
        self.all().iter().map(|fd| fd.as_fd())
    }

    fn of(fds: Vec<Arc<OwnedFd>>) -> Self {
        Luggage { fds: (!fds.is_empty()).then(|| fds.into()) }
    }

    fn all(&self) -> &[Arc<OwnedFd>] {
        self.fds.as_deref().unwrap_or_default()
    }
}

/// Puts the thread-local back as it was, also after a panic: messages may be packed inside of the packing of others.
struct Restore<T: 'static>(&'static std::thread::LocalKey<RefCell<Option<T>>>, Option<T>);

impl<T> Drop for Restore<T> {
    fn drop(&mut self) {
        let before = self.1.take();
        let _ = self.0.try_with(|slot| *slot.borrow_mut() = before);
    }
}

/// Runs `encode` and collects the descriptors of all handles that it serialises.
///
/// # Examples
///
/// ```
/// use polypool_ipc::{Fd, pack, unpack};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
/// let (bytes, luggage) = pack(|| serde_json::to_vec(&Fd::new(theirs.into())));
/// assert_eq!(luggage.len(), 1);
/// // ... bytes and luggage cross to another process ...
/// let theirs: Fd = unpack(&luggage, || serde_json::from_slice(&bytes?))?;
/// # let _ = (ours, theirs);
/// # Ok(())
/// # }
/// ```
pub fn pack<R>(encode: impl FnOnce() -> R) -> (R, Luggage) {
    // In a thread that ends, whose thread-locals have gone, handles can't travel; everything else can.
    let Ok(before) = PACKING.try_with(|slot| slot.borrow_mut().replace(Vec::new())) else {
        return (encode(), Luggage::default());
    };
    let restore = Restore(&PACKING, before);
    let result = encode();
    let fds = PACKING.with(|slot| slot.borrow_mut().take()).unwrap_or_default();
    drop(restore);
    (result, Luggage::of(fds))
}

/// Runs `decode` with the descriptors of the message at hand.
pub fn unpack<R>(luggage: &Luggage, decode: impl FnOnce() -> R) -> R {
    let Ok(before) = UNPACKING.try_with(|slot| slot.borrow_mut().replace(luggage.clone())) else { return decode() };
    let _restore = Restore(&UNPACKING, before);
    decode()
}

/// A descriptor that can be part of a message: an argument, a field of an argument or a result of a task.
///
/// The receiver gets a descriptor of its own for the same open file, pipe, socket or memory; the sender keeps its own.
/// Cheap to clone; it closes with the last clone. Works with every serde format, as long as the message is encoded
/// inside of [`pack`], as the process pool does.
///
/// # Errors
///
/// Serialising outside of [`pack`] and deserialising outside of [`unpack`] are errors of the serialiser that say so, as
/// is a place in the luggage that doesn't exist.
#[derive(Clone)]
pub struct Fd(Arc<OwnedFd>);

impl Fd {
    /// Makes a descriptor ready to travel.
    #[must_use = "dropping it closes the descriptor"]
    pub fn new(fd: OwnedFd) -> Self {
        Fd(Arc::new(fd))
    }

    /// The descriptor itself; a duplicate of it if there are other clones.
    ///
    /// # Errors
    ///
    /// What the system says when it is out of descriptors.
    pub fn into_inner(self) -> std::io::Result<OwnedFd> {
        Arc::try_unwrap(self.0).or_else(|shared| shared.try_clone())
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Fd {
    fn from(fd: OwnedFd) -> Self {
        Fd::new(fd)
    }
}

impl fmt::Debug for Fd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fd").field(&self.0.as_raw_fd()).finish()
    }
}

impl Serialize for Fd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let place = PACKING.try_with(|slot| {
            let mut slot = slot.borrow_mut();
            let fds = slot.as_mut()?;
            // The same descriptor twice in a message, as the board of several locks, travels once.
            let place = fds.iter().position(|fd| Arc::ptr_eq(fd, &self.0)).unwrap_or_else(|| {
                fds.push(self.0.clone());
                fds.len() - 1
            });
            Some(place as u32)
        });
        match place.ok().flatten() {
            Some(place) => serializer.serialize_newtype_struct("Fd", &place),
            None => Err(S::Error::custom(
                "a handle of something shared between processes can't be written into bytes: send it as an argument or \
                 result of a task, or through a pipe of polypool",
            )),
        }
    }
}

impl<'de> Deserialize<'de> for Fd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Place;
        impl<'de> serde::de::Visitor<'de> for Place {
            type Value = u32;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the place of a descriptor in the luggage of its message")
            }
            fn visit_u64<E: serde::de::Error>(self, place: u64) -> Result<u32, E> {
                u32::try_from(place).map_err(|_| E::custom("the place of a descriptor is too large"))
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<u32, D::Error> {
                u32::deserialize(deserializer)
            }
        }
        let place = deserializer.deserialize_newtype_struct("Fd", Place)?;
        let take = |luggage: Option<&Luggage>| match luggage {
            None => Err(D::Error::custom("a handle came in a message that carries no descriptors")),
            Some(luggage) => luggage.all().get(place as usize).cloned().map(Fd).ok_or_else(|| {
                D::Error::custom(format!(
                    "a handle names descriptor {place} of its message, which has {}",
                    luggage.len()
                ))
            }),
        };
        UNPACKING.try_with(|slot| take(slot.borrow().as_ref())).unwrap_or_else(|_| take(None))
    }
}
