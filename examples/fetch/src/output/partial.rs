//! Bodies on their way: the directory where files have no name yet, and those that were cut and may be gone on with.
//!
//! It is inside the directory of bodies, so that a file gets its name by a rename. What is unfinished there (`*.tmp`)
//! is removed by the next run that has the directory for itself, which a lock on it tells. A large body that was cut
//! stays (`<key>.part`), with a note beside it (`<key>.json`) that says what it is part of and what is in it: neither a
//! mix-up nor a power failure can make a wrong body of it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};
use tempfile::{NamedTempFile, TempPath};

use super::hash::Sha256;

/// The name of the directory. No body has one that starts with a dot.
const DIRECTORY: &str = ".fetch-partial";

/// The first bytes of a body, from an earlier attempt or run. Dropped without use, it stays for the next.
#[derive(Debug)]
pub(crate) struct Partial {
    /// How many bytes there are: where the range to ask for starts.
    pub(crate) len: u64,
    /// What to send as `If-Range`.
    pub(crate) validator: String,
    /// Until it is used.
    held: Option<Held>,
    scratch: Arc<Scratch>,
    key: String,
}

/// The file of a partial body, to be written on.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) file: NamedTempFile,
    /// Of what is in it.
    pub(super) hash: Sha256,
}

/// What is known of a partial body.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    validator: String,
    bytes: u64,
    sha256: String,
}

/// Where files have no name yet.
#[derive(Debug)]
pub(super) struct Scratch {
    directory: PathBuf,
    /// Shared by the runs that use the directory.
    lock: File,
    /// How many partial bodies there are, so that nobody looks for one where there are none.
    partials: AtomicUsize,
}

impl Scratch {
    /// Makes it inside the directory of bodies, which is made as well.
    pub(super) fn open(bodies: &Path) -> io::Result<Self> {
        let directory = bodies.join(DIRECTORY);
        fs::create_dir_all(&directory)?;
        let lock = File::open(&directory)?;
        if lock.try_lock().is_ok() {
            clean(&directory)?;
        }
        // Where there are no locks, one does without.
        let _ = lock.lock_shared();
        let partials =
            fs::read_dir(&directory)?.filter(|entry| entry.as_ref().is_ok_and(|entry| is_part(&entry.path())));
        let partials = AtomicUsize::new(partials.count());
        Ok(Scratch { directory, lock, partials })
    }

    /// A new file, removed again unless it is given a name.
    pub(super) fn file(&self) -> io::Result<NamedTempFile> {
        let mut builder = tempfile::Builder::new();
        // As any new file, within the umask; a temporary one would be for its owner alone.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        builder.prefix("").suffix(".tmp");
        match builder.tempfile_in(&self.directory) {
            // Another run has ended just now and taken the directory away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&self.directory)?;
                builder.tempfile_in(&self.directory)
            }
            file => file,
        }
    }

    /// The partial body with this key. Nobody else gets it until it is dropped.
    pub(super) fn take(self: &Arc<Self>, key: impl FnOnce() -> String) -> Option<Partial> {
        if self.partials.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let key = key();
        let path = self.directory.join(format!("{key}.tmp"));
        // While another request of this kind uses it, it isn't there under this name.
        fs::rename(self.part(&key), &path).ok()?;
        let path = TempPath::try_from_path(path).ok()?;
        self.partials.fetch_sub(1, Ordering::Relaxed);
        let note = fs::read(self.note(&key)).ok()?;
        let _ = fs::remove_file(self.note(&key));
        let Note { validator, bytes, sha256 } = serde_json::from_slice(&note).ok()?;
        // After reading it to its end, that is where it is written on.
        let file = File::options().read(true).write(true).open(&path).ok()?;
        let mut hash = Sha256::new();
        let len = self::hash(&file, &mut hash).ok()?;
        if (len, hash.clone().finish()) != (bytes, sha256) {
            return None;
        }
        let held = Some(Held { file: NamedTempFile::from_parts(file, path), hash });
        Some(Partial { len, validator, held, scratch: Arc::clone(self), key })
    }

    /// Leaves a partial body for the next attempt.
    pub(super) fn leave(&self, key: &str, validator: &str, bytes: u64, held: Held) -> io::Result<()> {
        let note = Note { validator: validator.to_owned(), bytes, sha256: held.hash.finish() };
        let text = serde_json::to_vec(&note)?;
        fs::write(self.note(key), text)?;
        let is_new = !self.part(key).exists();
        held.file.into_temp_path().persist(self.part(key))?;
        if is_new {
            self.partials.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The body is whole: a part of it is of no use any more.
    pub(super) fn forget(&self, key: impl FnOnce() -> String) {
        if self.partials.load(Ordering::Relaxed) == 0 {
            return;
        }
        let key = key();
        if fs::remove_file(self.part(&key)).is_ok() {
            self.partials.fetch_sub(1, Ordering::Relaxed);
            let _ = fs::remove_file(self.note(&key));
        }
    }

    fn part(&self, key: &str) -> PathBuf {
        self.directory.join(format!("{key}.part"))
    }

    fn note(&self, key: &str) -> PathBuf {
        self.directory.join(format!("{key}.json"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Fails if there are partial bodies, which is right.
        if self.lock.try_lock().is_ok() {
            let _ = fs::remove_dir(&self.directory);
        }
    }
}

impl Partial {
    /// Takes the file, to go on with it.
    pub(super) fn into_held(mut self) -> Option<Held> {
        self.held.take()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            // If it fails, the whole body will be fetched.
            let _ = self.scratch.leave(&self.key, &self.validator, self.len, held);
        }
    }
}

/// Removes what a killed run has left, except for parts with a note.
fn clean(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let other = match path.extension().and_then(OsStr::to_str) {
            Some("part") => path.with_extension("json"),
            Some("json") => path.with_extension("part"),
            _ => PathBuf::new(),
        };
        if !other.exists() {
            // What can't be removed is in nobody's way.
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

fn is_part(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "part")
}

/// Adds all that can be read to a hash, and counts it.
pub(super) fn hash(mut from: impl Read, hash: &mut Sha256) -> io::Result<u64> {
    let mut buffer = vec![0; 64 * 1024];
    let mut bytes = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(read) => {
                bytes += read as u64;
                hash.update(&buffer[..read]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory.join(DIRECTORY))
            .map(|entries| entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        names.sort();
        names
    }

    fn leave(scratch: &Scratch, content: &[u8]) {
        let mut file = scratch.file().unwrap();
        file.write_all(content).unwrap();
        let mut hash = Sha256::new();
        hash.update(content);
        scratch.leave("key", "\"v1\"", content.len() as u64, Held { file, hash }).unwrap();
    }

    #[test]
    fn a_part_is_there_for_one_at_a_time_and_for_the_next_run() {
        let directory = tempfile::tempdir().unwrap();
        let scratch = Arc::new(Scratch::open(directory.path()).unwrap());
        assert!(scratch.take(|| unreachable!("there is none")).is_none());
        leave(&scratch, b"half");
        let partial = scratch.take(|| "key".into()).unwrap();
        assert_eq!((partial.len, partial.validator.as_str()), (4, "\"v1\""));
        assert!(scratch.take(|| "key".into()).is_none(), "it is taken");
        drop(partial);
        drop(scratch);
        assert_eq!(names(directory.path()), ["key.json", "key.part"]);

        let scratch = Arc::new(Scratch::open(directory.path()).unwrap());
        let mut held = scratch.take(|| "key".into()).unwrap().into_held().unwrap();
        held.file.write_all(b" and half").unwrap();
        assert_eq!(fs::read(held.file.path()).unwrap(), b"half and half");
        drop(held);
        drop(scratch);
        assert!(!directory.path().join(DIRECTORY).exists(), "nothing is left");
    }

    #[test]
    fn a_part_that_is_not_what_its_note_says_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let scratch = Arc::new(Scratch::open(directory.path()).unwrap());
        leave(&scratch, b"half");
        // As after a power failure: the length is right.
        fs::write(scratch.part("key"), [0; 4]).unwrap();
        assert!(scratch.take(|| "key".into()).is_none());
        assert!(names(directory.path()).is_empty());

        leave(&scratch, b"half");
        scratch.forget(|| "key".into());
        assert!(scratch.take(|| "key".into()).is_none());
    }

    #[test]
    fn what_a_killed_run_has_left_is_removed_but_not_what_another_run_uses() {
        let directory = tempfile::tempdir().unwrap();
        let scratch = Scratch::open(directory.path()).unwrap();
        leave(&scratch, b"half");
        let in_use = scratch.file().unwrap();
        let second = Scratch::open(directory.path()).unwrap();
        assert!(in_use.path().exists());
        drop(second);
        fs::write(directory.path().join(DIRECTORY).join("lonely.json"), "{}").unwrap();
        let (_, left) = in_use.keep().unwrap();
        drop(scratch);
        let _third = Scratch::open(directory.path()).unwrap();
        assert!(!left.exists());
        assert_eq!(names(directory.path()), ["key.json", "key.part"]);
    }
}
