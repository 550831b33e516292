//! What a worker does to itself before its first task.

#[cfg(unix)]
mod common;

#[cfg(unix)]
mod tests {
    use std::env;
    use std::fs::File;
    use std::io::{self, BufRead, BufReader, Read, Write};
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::process::{Child, ChildStdin, Command, Stdio};
    use std::sync::mpsc;
    use std::thread;

    use polypool_ipc::{NotSingleThreaded, close_inherited, die_now, remove_env, set_process_name, take_stdin};

    use super::common::{Test, again};

    pub(crate) const TESTS: &[Test] = &[
        ("inherited_descriptors_are_closed_and_kept_ones_stay", closes),
        ("descriptors_of_this_program_stay_open", own_stay),
        ("with_two_threads_everything_that_needs_one_is_refused", refused),
        ("a_variable_is_gone_for_this_process_and_its_children", environment),
        ("names_no_variable_can_have_are_refused", bad_names),
        ("standard_input_is_taken_and_replaced_by_nothing", stdin),
        ("a_closed_standard_input_is_an_error", no_stdin),
        ("the_process_has_its_name", name),
        ("die_now_runs_nothing", dies),
    ];
    pub(crate) const PARTS: &[Test] =
        &[("closer", closer), ("stdin taker", stdin_taker), ("without stdin", without_stdin), ("dying", dying)];

    /// A copy that children inherit.
    fn inheritable(fd: impl AsFd) -> OwnedFd {
        rustix::io::dup(fd).unwrap()
    }

    fn is_cloexec(fd: impl AsFd) -> bool {
        rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC)
    }

    /// Starts `part`, waits until it says that it is ready, and keeps it waiting on its input.
    fn ready(part: &mut Command) -> (Child, ChildStdin) {
        let mut child = part.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let stdin = child.stdin.take().unwrap();
        (child, stdin)
    }

    /// A child inherits the write ends of two pipes, keeps one and lives on: the reader of the other must see the end.
    fn closes() {
        let (mut closed, end) = io::pipe().unwrap();
        let to_close = inheritable(&end);
        drop(end);
        let (mut kept, end) = io::pipe().unwrap();
        let to_keep = inheritable(&end);
        drop(end);

        let (mut child, stdin) = ready(again("closer").env("KEEP", to_keep.as_raw_fd().to_string()));
        drop((to_close, to_keep));
        let mut bytes = Vec::new();
        closed.read_to_end(&mut bytes).unwrap(); // would hang if the child still had it
        assert!(child.try_wait().unwrap().is_none(), "the child must be alive for this to mean anything");
        drop(stdin);
        kept.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"kept");
        assert!(child.wait().unwrap().success());
    }

    fn closer() {
        let keep = env::var("KEEP").unwrap().parse().unwrap();
        // SAFETY: inherited from the test, which names it, and owned by nobody else here.
        let keep = unsafe { OwnedFd::from_raw_fd(keep) };
        close_inherited(&[keep.as_fd()]).unwrap();
        println!("ready");
        io::stdin().read_to_end(&mut Vec::new()).unwrap();
        File::from(keep).write_all(b"kept").unwrap();
    }

    fn own_stay() {
        let mut file = File::open(env::current_exe().unwrap()).unwrap();
        let (mut reader, mut writer) = io::pipe().unwrap();
        close_inherited(&[]).unwrap();
        file.read_exact(&mut [0; 4]).unwrap();
        writer.write_all(b"x").unwrap();
        reader.read_exact(&mut [0]).unwrap();
        print!(" "); // and so do the first three
        eprint!("");
        assert!(rustix::io::fcntl_getfd(rustix::stdio::stdin()).is_ok());
    }

    fn refused() {
        let (stop, stopped) = mpsc::channel::<()>();
        let other = thread::spawn(move || stopped.recv());
        let (reader, _writer) = io::pipe().unwrap();
        let inherited = inheritable(&reader);
        for result in [close_inherited(&[]), remove_env("PATH")] {
            let error = result.unwrap_err();
            let cause = error.get_ref().unwrap().downcast_ref::<NotSingleThreaded>().unwrap();
            assert_eq!(cause.threads, 2);
            assert!(error.to_string().contains("2 threads"), "{error}");
        }
        assert!(rustix::io::fcntl_getfd(&inherited).is_ok());
        assert!(env::var_os("PATH").is_some());
        drop(stop);
        let _ = other.join().unwrap();
        remove_env("PATH").unwrap();
    }

    fn environment() {
        // A child gets it from here, so that nobody has to set one in a running process.
        assert!(env::var_os("POLYPOOL_IPC_TEST").is_some());
        remove_env("POLYPOOL_IPC_TEST").unwrap();
        assert!(env::var_os("POLYPOOL_IPC_TEST").is_none());
        let seen = Command::new("/usr/bin/env").output().unwrap().stdout;
        assert!(!String::from_utf8_lossy(&seen).contains("POLYPOOL_IPC_TEST="));
        remove_env("POLYPOOL_IPC_TEST").unwrap();
    }

    fn bad_names() {
        for name in ["", "=", "a=b", "a\0b"] {
            assert_eq!(remove_env(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
    }

    fn stdin() {
        let (channel, theirs) = UnixStream::pair().unwrap();
        let mut child = again("stdin taker").stdin(OwnedFd::from(theirs)).spawn().unwrap();
        (&channel).write_all(b"frame").unwrap();
        let mut reply = [0; 5];
        (&channel).read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"FRAME");
        assert!(child.wait().unwrap().success());
    }

    fn stdin_taker() {
        let taken = take_stdin().unwrap();
        assert!(taken.as_raw_fd() >= 3);
        assert!(is_cloexec(&taken));
        assert!(!is_cloexec(rustix::stdio::stdin()), "children have a standard input too");
        assert_eq!(io::stdin().read_to_end(&mut Vec::new()).unwrap(), 0);
        let mut channel = UnixStream::from(taken);
        let mut frame = [0; 5];
        channel.read_exact(&mut frame).unwrap();
        channel.write_all(&frame.to_ascii_uppercase()).unwrap();
    }

    fn no_stdin() {
        assert!(again("without stdin").status().unwrap().success());
    }

    fn without_stdin() {
        // SAFETY: std refers to standard input by its number only.
        drop(unsafe { OwnedFd::from_raw_fd(0) });
        assert!(take_stdin().is_err());
        // And nothing has been put in its place.
        // SAFETY: only asks whether it is open.
        assert!(rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(0) }).is_err());
    }

    fn name() {
        for (given, seen) in [
            ("pool worker 3", "pool worker 3"),
            ("a name that is far too long", "a name that is "),
            ("cut\0here", "cut"),
        ] {
            set_process_name(given);
            if cfg!(target_os = "linux") {
                let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
                assert_eq!(comm.trim_end_matches('\n'), seen);
            }
        }
    }

    fn dies() {
        let output = again("dying").output().unwrap();
        assert_eq!(output.status.code(), Some(70));
        assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    }

    fn dying() {
        struct Loud;
        impl Drop for Loud {
            fn drop(&mut self) {
                eprintln!("dropped");
            }
        }
        let _loud = Loud;
        print!("no line end, so it stands in the buffer");
        let (up, ready) = mpsc::channel();
        let watcher = thread::spawn(move || {
            ready.recv().unwrap();
            die_now();
        });
        let stdout = io::stdout().lock(); // an ordinary exit may want this lock
        up.send(()).unwrap();
        let _ = watcher.join();
        drop(stdout);
    }
}

#[cfg(unix)]
fn main() -> std::process::ExitCode {
    common::main(tests::TESTS, tests::PARTS)
}

#[cfg(not(unix))]
fn main() {}
