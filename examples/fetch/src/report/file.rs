//! The file of `--summary-json`.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use tempfile::NamedTempFile;

use super::summary::Report;

/// Where the summary goes at the end of the run.
#[derive(Debug)]
pub(crate) struct SummaryFile {
    /// As the user wrote it.
    name: PathBuf,
    to: To,
}

#[derive(Debug)]
enum To {
    Stdout,
    Stderr,
    /// A device, a pipe, or what another program has opened: nothing that another file could take the place of.
    Stream(File),
    /// A file that is there whole or not at all, and keeps the permissions it had.
    File {
        path: PathBuf,
        permissions: Option<Permissions>,
    },
}

impl SummaryFile {
    /// Makes sure that it can be written, and leaves everything as it is. `-` is standard output.
    pub(crate) fn open(name: PathBuf) -> Result<Self> {
        match To::open(&name) {
            Ok(to) => Ok(SummaryFile { name, to }),
            Err(error) => bail!("--summary-json can't write to {}: {error}", name.display()),
        }
    }

    /// # Errors
    /// It could not be written. That is no [`io::Error`]: nobody who has stopped reading is forgiven here.
    pub(crate) fn write(self, report: &Report) -> Result<()> {
        let text = serde_json::to_string_pretty(report)? + "\n";
        self.to.write(&text).map_err(|error| anyhow!("--summary-json can't write to {}: {error}", self.name.display()))
    }
}

impl To {
    fn open(name: &Path) -> io::Result<Self> {
        if name == Path::new("-") {
            return Ok(To::Stdout);
        }
        let path = follow(name)?;
        // Opened by such a name, a file would be written to from its start.
        match descriptor(&path) {
            Some("1") => return Ok(To::Stdout),
            Some("2") => return Ok(To::Stderr),
            _ => {}
        }
        match File::options().append(true).open(&path) {
            Ok(file) => {
                let metadata = file.metadata()?;
                if !metadata.is_file() || path.starts_with("/proc") || descriptor(&path).is_some() {
                    return Ok(To::Stream(file));
                }
                drop(beside(&path)?);
                Ok(To::File { path, permissions: Some(metadata.permissions()) })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let is_name = path.file_name().is_some() && !path.as_os_str().as_encoded_bytes().ends_with(b"/");
                if !is_name {
                    return Err(ErrorKind::IsADirectory.into());
                }
                drop(beside(&path)?);
                Ok(To::File { path, permissions: None })
            }
            Err(error) => Err(error),
        }
    }

    fn write(self, text: &str) -> io::Result<()> {
        match self {
            To::Stdout => {
                let mut stdout = io::stdout();
                stdout.write_all(text.as_bytes())?;
                stdout.flush()
            }
            To::Stderr => io::stderr().write_all(text.as_bytes()),
            To::Stream(mut file) => file.write_all(text.as_bytes()),
            To::File { path, permissions } => {
                let mut file = beside(&path)?;
                file.write_all(text.as_bytes())?;
                if let Some(permissions) = permissions {
                    file.as_file().set_permissions(permissions)?;
                }
                file.persist(&path)?;
                Ok(())
            }
        }
    }
}

/// What links lead to, if something is there or not; but for those that stand for a descriptor.
fn follow(name: &Path) -> io::Result<PathBuf> {
    // As many as Linux follows.
    const LINKS: usize = 40;
    let mut path = name.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&path) {
            Ok(target) if descriptor(&path).is_none() => path = directory(&path).join(target),
            _ => return Ok(path),
        }
    }
    Err(io::Error::other("too many links"))
}

/// The number of a descriptor that a name stands for. What it leads to belongs to whoever opened it.
fn descriptor(name: &Path) -> Option<&str> {
    match name.to_str()? {
        "/dev/stdout" => Some("1"),
        "/dev/stderr" => Some("2"),
        name => ["/dev/fd/", "/proc/self/fd/"].into_iter().find_map(|start| name.strip_prefix(start)),
    }
}

/// A new file, for all whom the umask allows, that goes away unless it is given a name.
fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.prefix(".fetch-summary").tempfile_in(directory(path))
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;
    use std::thread;

    use super::*;
    use crate::report::{Circumstances, Summary};

    fn report() -> Report {
        Summary::new().report(Circumstances::default())
    }

    fn write(path: &Path) {
        SummaryFile::open(path.to_owned()).unwrap().write(&report()).unwrap();
    }

    #[track_caller]
    fn assert_written(path: &Path) {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.starts_with("{\n") && text.ends_with("}\n") && text.contains("\"rows\": 0"), "{text}");
    }

    fn names(directory: &Path) -> Vec<String> {
        let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }

    #[test]
    fn a_file_is_there_whole_at_the_end_and_for_whom_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("summary.json");
        let file = SummaryFile::open(path.clone()).unwrap();
        assert_eq!(names(directory.path()), [""; 0], "nothing is left if the run is killed");
        file.write(&report()).unwrap();
        assert_written(&path);
        let new = directory.path().join("new");
        File::create(&new).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&new), "as any new file");

        fs::set_permissions(&path, Permissions::from_mode(0o604)).unwrap();
        fs::write(&path, "of the run before").unwrap();
        let file = SummaryFile::open(path.clone()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"of the run before");
        file.write(&report()).unwrap();
        assert_written(&path);
        assert_eq!(mode(&path) & 0o777, 0o604);
        assert_eq!(names(directory.path()).len(), 2);
    }

    #[test]
    fn links_stay_links() {
        let directory = tempfile::tempdir().unwrap();
        let (link, other, target) = ["link", "other", "target"].map(|name| directory.path().join(name)).into();
        symlink("target", &link).unwrap();
        symlink(&link, &other).unwrap();
        for _ in 0..2 {
            write(&other); // First to where nothing is.
            assert!(link.is_symlink() && other.is_symlink() && !target.is_symlink());
            assert_written(&target);
        }
        // Of what is open already nothing is replaced, by whatever way one comes there.
        let (log, stderr) = (directory.path().join("log"), directory.path().join("stderr"));
        let open = File::create(&log).unwrap();
        symlink(format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open)), &stderr).unwrap();
        write(&stderr);
        assert_eq!(open.metadata().unwrap().len(), fs::metadata(&log).unwrap().len());
        assert_written(&log);

        let circle = directory.path().join("circle");
        symlink("circle", &circle).unwrap();
        SummaryFile::open(circle).unwrap_err();
    }

    #[test]
    fn what_is_no_file_is_written_to_and_stays_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let reader = thread::spawn({
            let pipe = pipe.clone();
            move || fs::read_to_string(pipe).unwrap()
        });
        write(&pipe);
        assert!(reader.join().unwrap().ends_with("}\n"));
        assert_eq!(names(directory.path()), ["pipe"]);

        // As the standard error of a program that goes to a file.
        let log = directory.path().join("log");
        fs::write(&log, "before\n").unwrap();
        let open = File::options().append(true).open(&log).unwrap();
        write(&PathBuf::from(format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open))));
        (&open).write_all(b"after\n").unwrap();
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.starts_with("before\n{\n") && text.ends_with("}\nafter\n"), "{text}");
    }

    #[test]
    fn what_can_not_be_written_is_known_at_once() {
        let directory = tempfile::tempdir().unwrap();
        for path in ["", "no/such", "new/", ".."].map(|name| directory.path().join(name)).into_iter().chain(["".into()])
        {
            let error = format!("{:#}", SummaryFile::open(path.clone()).unwrap_err());
            assert!(error.contains("--summary-json") && error.contains(path.to_str().unwrap()), "{error}");
        }
        #[cfg(target_os = "linux")]
        {
            // By a name that nothing can be put in the place of, whatever is wrong with the program.
            let full = File::options().write(true).open("/dev/full").unwrap();
            let name = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&full));
            let file = SummaryFile::open(name.clone().into()).unwrap();
            let error = format!("{:#}", file.write(&report()).unwrap_err());
            assert!(error.contains("--summary-json") && error.contains(&name), "{error}");
        }
    }
}
