//! Names for shared memory: files in `/dev/shm`, made complete or not at all.
//!
//! A new one is made without a name, given its size, its pages and its content, and only then linked under the name, in
//! one step that refuses a name that is taken. So nobody ever attaches to memory that is half set up, and a creator
//! that is killed leaves either nothing or a whole object. A name stays until it's unlinked, whoever ends: that is what
//! names are for. Memory that should go with its users has no name.
//!
//! # Several processes and one name
//!
//! - Of several that create the same name at once, one succeeds, and the others are told that it's taken.
//! - Of several that unlink it at once, one succeeds for each time that it was created; the others are told that it
//!   isn't there (or by now belongs to other memory).
//! - A handle takes the name away only if it's still the name of *its* memory, also if others unlink and create the
//!   name at the same moment. The system has no such call; so whoever unlinks takes a lock (`flock`) on the memory that
//!   has the name, and looks again whether it still has it. As a name that is taken can't be created, it then goes on
//!   to have it until the holder of the lock has unlinked it. The kernel gives the lock back when its holder dies.
//! - Programs that don't take that lock (Python, `rm`) may come in between look and unlinking: if one of them unlinks
//!   the name *and* somebody creates it again in these few microseconds, it's taken away from the new memory.

use std::ffi::{CStr, CString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::shm;

use super::segment::{Segment, identity};
use crate::travel::Fd;

/// Where the names are.
const FOLDER: &str = "/dev/shm";

/// The longest name of a file.
const LONGEST: usize = 255;

/// What POSIX allows everywhere: one to 255 bytes, and no slash.
fn check(name: &str) -> io::Result<CString> {
    let refuse = |why: &str| {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} can't name shared memory: {why}")))
    };
    if name.is_empty() {
        return refuse("it is empty");
    }
    if name.len() > LONGEST {
        return refuse(&format!("it has {} bytes, and {LONGEST} is the most", name.len()));
    }
    if name.contains('/') {
        return refuse("it contains a slash");
    }
    if name == "." || name == ".." {
        return refuse("it means a folder");
    }
    CString::new(name).or_else(|_| refuse("it contains a zero byte").map(|never: CString| never))
}

fn about(name: &str, what: &str, errno: Errno) -> io::Error {
    let cause = io::Error::from(errno);
    io::Error::new(cause.kind(), format!("shared memory {name:?} can't be {what}: {cause}"))
}

/// New memory of that name, which is zero but for what `fill` has written when it becomes visible to others.
pub(crate) fn create(name: &str, len: usize, fill: impl FnOnce(&Segment)) -> io::Result<Arc<Segment>> {
    check(name)?;
    let failed = |errno| about(name, "created", errno);
    let mode = Mode::RUSR | Mode::WUSR;
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let fd: OwnedFd = rustix::fs::open(FOLDER, flags, mode).map_err(failed)?;
    rustix::fs::ftruncate(&fd, len as u64).map_err(failed)?;
    // Takes the room now: the file system has a limit, and to run into it later would be a fault instead of an error.
    rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, len as u64).map_err(failed)?;
    let segment = Segment::open_any(&Fd::new(fd), len)?;
    fill(&segment);
    let nameless = format!("/proc/self/fd/{}", segment.fd().as_fd().as_raw_fd());
    rustix::fs::linkat(CWD, nameless, CWD, format!("{FOLDER}/{name}"), AtFlags::SYMLINK_FOLLOW).map_err(failed)?;
    Ok(segment)
}

/// The memory of that name.
pub(crate) fn open(name: &str) -> io::Result<Arc<Segment>> {
    let path = check(name)?;
    let fd = shm::open(&path, shm::OFlags::RDWR, Mode::empty()).map_err(|errno| about(name, "opened", errno))?;
    Segment::open_any(&Fd::new(fd), 1)
}

/// Takes the name away.
pub(crate) fn unlink(name: &str) -> io::Result<()> {
    let path = check(name)?;
    match Locked::of(name, &path) {
        Ok(_locked) => shm::unlink(&path).map_err(|errno| about(name, "unlinked", errno)),
        // Who may not open it may still be allowed to unlink it; nobody has a handle whose look that could get in the
        // way of, but its owner.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            shm::unlink(&path).map_err(|errno| about(name, "unlinked", errno))
        }
        Err(error) => Err(error),
    }
}

/// How often one tries to get the right to unlink, a millisecond apart.
const TRIES: u32 = 2_000;

/// The right to take a name away from the memory that has it, and goes on to have it until then.
struct Locked {
    /// Closed, it gives the right back.
    _file: OwnedFd,
    memory: (u64, u64),
}

impl Locked {
    fn of(name: &str, path: &CStr) -> io::Result<Self> {
        let failed = |errno| about(name, "unlinked", errno);
        for _ in 0..TRIES {
            let file = shm::open(path, shm::OFlags::RDWR, Mode::empty()).map_err(failed)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                // Somebody unlinks it: soon it's not there any more.
                Err(Errno::WOULDBLOCK) => {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                Err(errno) => return Err(failed(errno)),
            }
            // It may have lost its name before it was locked.
            let now = shm::open(path, shm::OFlags::RDWR, Mode::empty()).map_err(failed)?;
            let (memory, now) = (identity(file.as_fd())?, identity(now.as_fd())?);
            if memory == now {
                return Ok(Locked { _file: file, memory });
            }
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("shared memory {name:?} can't be unlinked: another process has been at it for too long"),
        ))
    }
}

/// The name of a piece of memory, as its handles know it.
#[derive(Clone)]
pub(crate) struct Name {
    pub(crate) name: Arc<str>,
    /// Takes the name away with the last handle that knows of it.
    owned: Option<Arc<Owned>>,
}

impl Name {
    pub(crate) fn new(name: &str) -> Self {
        Name { name: name.into(), owned: None }
    }

    /// Takes the name away again when this and its clones have been dropped.
    pub(crate) fn own(&mut self, segment: &Arc<Segment>) {
        self.owned.get_or_insert_with(|| Arc::new(Owned { name: self.name.clone(), segment: segment.clone() }));
    }

    /// Takes the name away, if it's still this memory that has it.
    pub(crate) fn unlink(&self, segment: &Segment) -> io::Result<()> {
        let path = check(&self.name)?;
        let locked = Locked::of(&self.name, &path)?;
        if locked.memory != identity(segment.fd().as_fd())? {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("shared memory {:?} can't be unlinked: the name belongs to other memory by now", self.name),
            ));
        }
        shm::unlink(&path).map_err(|errno| about(&self.name, "unlinked", errno))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

struct Owned {
    name: Arc<str>,
    segment: Arc<Segment>,
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Unlinked already, or given to other memory: both are fine.
        let _ = Name { name: self.name.clone(), owned: None }.unlink(&self.segment);
    }
}
