//! The second process that some operations need: started by a contestant, given the handles of what is shared through
//! its input, a socket, and told there as well when to do its half of a round.

use std::env;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use polypool_ipc::{Luggage, pack, recv_with_fds, send_with_fds, unpack};
use rustix::thread::{sched_getaffinity, sched_setaffinity};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::part::{PART, Rounds, pin};

/// The longest message that brings handles to a helper.
const LONGEST: usize = 4096;

/// What a helper does, by its name.
pub(crate) type Help = (&'static str, fn(Place) -> io::Result<()>);

/// Plays a helper, if there is one of that name.
pub(crate) fn help(name: &str, helps: &[Help]) -> Option<io::Result<()>> {
    let (_, help) = helps.iter().find(|(known, _)| *known == name)?;
    Some(help(Place { socket: io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from) }))
}

/// Rounds of something that one process does alone.
pub(crate) fn alone(mut run: impl FnMut(u64) + 'static) -> Rounds {
    Box::new(move |count| {
        let start = Instant::now();
        run(count);
        Ok(start.elapsed())
    })
}

/// Rounds in which a helper and this process do as many operations each as `share` says of a round's.
pub(crate) fn together(
    mut helper: Helper,
    share: fn(u64) -> u64,
    mut mine: impl FnMut(u64) -> io::Result<()> + 'static,
) -> Rounds {
    Box::new(move |count| {
        let start = Instant::now();
        helper.go(share(count))?;
        mine(share(count))?;
        helper.done()?;
        Ok(start.elapsed())
    })
}

/// Both sides have a part in every operation.
pub(crate) fn all(count: u64) -> u64 {
    count
}

/// An operation is done by either.
pub(crate) fn half(count: u64) -> u64 {
    count / 2
}

/// The second process of an operation. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Helper {
    child: Child,
    socket: UnixStream,
}

impl Helper {
    /// Starts it on the first or the second core, with something to share, and waits until it is ready.
    pub(crate) fn start(name: &str, core: usize, shared: &impl Serialize) -> io::Result<Helper> {
        let (socket, theirs) = UnixStream::pair()?;
        let before = sched_getaffinity(None)?;
        pin(core)?;
        let child = Command::new(env::current_exe()?)
            .env(PART, name)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn();
        sched_setaffinity(None, &before)?;
        let mut helper = Helper { child: child?, socket };
        let (bytes, luggage) = pack(|| serde_json::to_vec(shared));
        send_with_fds(&helper.socket, &bytes?, &luggage.fds().collect::<Vec<_>>())?;
        helper.done()?;
        Ok(helper)
    }

    /// Has it do its part of a round.
    pub(crate) fn go(&mut self, count: u64) -> io::Result<()> {
        self.socket.write_all(&count.to_ne_bytes())
    }

    /// Waits until it has done it.
    pub(crate) fn done(&mut self) -> io::Result<()> {
        self.socket.read_exact(&mut [0]).map_err(|error| {
            io::Error::other(format!("the second process has ended in the middle of a round: {error}"))
        })
    }

    /// Kills it with SIGKILL, now.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.child.kill()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a helper finds itself.
#[derive(Debug)]
pub(crate) struct Place {
    socket: io::Result<UnixStream>,
}

impl Place {
    /// Receives what it shares, and does its part of each round.
    pub(crate) fn serve<T: DeserializeOwned, F: FnMut(u64) -> io::Result<()>>(
        self,
        set_up: impl FnOnce(T) -> io::Result<F>,
    ) -> io::Result<()> {
        let mut socket = self.socket?;
        let mut bytes = [0; LONGEST];
        let (count, fds) = recv_with_fds(&socket, &mut bytes, 64)?;
        let shared = unpack(&Luggage::new(fds), || serde_json::from_slice(&bytes[..count]))?;
        let mut part = set_up(shared)?;
        loop {
            socket.write_all(b"d")?;
            let mut count = [0; 8];
            socket.read_exact(&mut count)?;
            part(u64::from_ne_bytes(count))?;
        }
    }
}
