//! Names for shared memory: files in `/dev/shm`, made complete or not at all.
//!
//! A new one is made without a name, given its size, its pages and its content, and only then linked under the name, in one step that refuses
//! a name that is taken. So nobody ever attaches to memory that is half set up, and a creator that is killed leaves either nothing or a whole
//! object. A name stays until it's unlinked, whoever ends: that is what names are for. Memory that should go with its
//! users has no name.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::shm;

use super::segment::Segment;
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
    let nameless = format!("/proc/self/fd/{}", std::os::fd::AsFd::as_fd(segment.fd()).as_raw_fd());
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
    shm::unlink(&path).map_err(|errno| about(name, "unlinked", errno))
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
        let failed = |errno| about(&self.name, "unlinked", errno);
        let now = shm::open(&path, shm::OFlags::RDWR, Mode::empty()).map_err(failed)?;
        let (its, ours) = (rustix::fs::fstat(&now).map_err(failed)?, rustix::fs::fstat(segment.fd()).map_err(failed)?);
        if (its.st_dev, its.st_ino) != (ours.st_dev, ours.st_ino) {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("shared memory {:?} can't be unlinked: the name belongs to other memory by now", self.name),
            ));
        }
        shm::unlink(&path).map_err(failed)
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
