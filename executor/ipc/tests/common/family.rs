//! Tests with several processes: children are this very binary in a *role*, and talk with their parent over a socket
//! that is their stdin.
//!
//! A test binary names its roles once, before its `main`:
//!
//! ```ignore
//! polypool_ipc::before_main!(roles);
//! fn roles() { family::run_roles(&[("adder", adder)]) }
//! fn adder(parent: &Peer) { let counter: Value<u64> = parent.recv(); counter.with(|n| *n += 1); parent.send(&"done"); }
//! ```
//!
//! and a test starts them with [`child`]. Everything sent may contain handles. Nothing can hang: who waits for a
//! message that doesn't come, or a process that doesn't end, panics after [`LIMIT`], a child ends by itself then, and a
//! `Child` that is dropped kills its process.

#![allow(dead_code)] // No test uses all of it.
#![allow(unreachable_pub)] // It's a module of each test.
#![allow(clippy::type_complexity)] // Roles.

use std::env;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use polypool_ipc::{Luggage, pack, recv_with_fds, send_with_fds, unpack};
use serde::Serialize;
use serde::de::DeserializeOwned;

const ROLE: &str = "POLYPOOL_IPC_FAMILY_ROLE";

/// How long anything may take.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The process at the other end: of a child its parent, of a parent its child.
#[derive(Debug)]
pub struct Peer(UnixStream);

impl Peer {
    /// Sends a message, with the handles in it.
    pub fn send(&self, message: &(impl Serialize + ?Sized)) {
        let (bytes, luggage) = pack(|| serde_json::to_vec(message).unwrap());
        let fds: Vec<BorrowedFd<'_>> = luggage.fds().collect();
        let mut head = (bytes.len() as u32).to_le_bytes().to_vec();
        head.extend((fds.len() as u32).to_le_bytes());
        (&self.0).write_all(&head).unwrap();
        send_with_fds(&self.0, &bytes, &fds).unwrap();
    }

    /// The next message.
    #[track_caller]
    pub fn recv<T: DeserializeOwned>(&self) -> T {
        self.try_recv().unwrap_or_else(|error| panic!("no message from the other process: {error}"))
    }

    /// The next message, or why there is none.
    pub fn try_recv<T: DeserializeOwned>(&self) -> std::io::Result<T> {
        let mut head = [0; 8];
        (&self.0).read_exact(&mut head)?;
        let [len, count] = [0, 4].map(|at| u32::from_le_bytes(head[at..at + 4].try_into().unwrap()) as usize);
        let mut bytes = vec![0; len];
        let (read, fds) = recv_with_fds(&self.0, &mut bytes, 253)?;
        (&self.0).read_exact(&mut bytes[read..])?;
        assert_eq!(fds.len(), count);
        Ok(unpack(&Luggage::new(fds), || serde_json::from_slice(&bytes))?)
    }

    /// Waits for a message that is exactly this word.
    #[track_caller]
    pub fn expect(&self, word: &str) {
        assert_eq!(self.recv::<String>(), word);
    }
}

/// A child process, killed when dropped.
#[derive(Debug)]
pub struct Child {
    pub process: std::process::Child,
    peer: Peer,
}

impl std::ops::Deref for Child {
    type Target = Peer;

    fn deref(&self) -> &Peer {
        &self.peer
    }
}

/// Ends a test binary that waits for something that no timeout of its own covers, such as a lock of a dead child.
fn watchdog() {
    static STARTED: std::sync::Once = std::sync::Once::new();
    STARTED.call_once(|| {
        std::thread::spawn(|| {
            std::thread::sleep(LIMIT * 5);
            eprintln!("the tests are still running after {:?}", LIMIT * 5);
            std::process::exit(101);
        });
    });
}

/// Starts this binary in a role, and sends it its first message.
pub fn child(role: &str, message: &(impl Serialize + ?Sized)) -> Child {
    watchdog();
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(LIMIT)).unwrap();
    let process = Command::new(env::current_exe().unwrap())
        .env(ROLE, role)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .unwrap();
    let child = Child { process, peer: Peer(ours) };
    child.send(message);
    child
}

impl Child {
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Kills it, if it's still there, and waits until it's gone.
    pub fn kill(&mut self) -> ExitStatus {
        let _ = self.process.kill();
        self.process.wait().unwrap()
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "a child is still running after {LIMIT:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until it has ended by itself, successfully.
    #[track_caller]
    pub fn join(mut self) {
        let status = self.wait();
        assert!(status.success(), "a child failed: {status}");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// In a child, runs its role and exits. In a test binary that is no child, does nothing.
pub fn run_roles(roles: &[(&str, fn(&Peer))]) {
    let Some(role) = env::var_os(ROLE) else { return };
    // Its own children, if it has any, choose their own roles.
    polypool_ipc::remove_env(ROLE).unwrap();
    let (_, body) = *roles.iter().find(|(name, _)| role == *name).expect("no such role");
    std::thread::spawn(|| {
        std::thread::sleep(LIMIT);
        eprintln!("a child has been running for {LIMIT:?}");
        std::process::exit(3);
    });
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let peer = Peer(UnixStream::from(stdin));
    // On a thread of its own, as little works before `main` on the first one. A panic has been reported when it gets
    // here.
    let ok = std::thread::spawn(move || body(&peer)).join().is_ok();
    std::process::exit(if ok { 0 } else { 2 });
}
