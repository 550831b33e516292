//! Starting a worker process, by either method, and greeting it.
//!
//! Neither uses `pre_exec`, which would make the start fifty times slower in a large process: the channel is passed as
//! standard input, and everything else that a worker needs comes over the channel.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use polypool_ipc::Claims;

use super::Config;
use super::entry::{Role, VARIABLE};
use super::link::WINDOW;
use super::sys::Process;
use super::transport::{self, Ring};
use super::wire::{self, Header, Hello, Kind};
use crate::error::WorkerExit;

/// A worker process that has been started and greeted.
pub(super) struct Started {
    pub(super) pid: u32,
    pub(super) process: Handle,
    pub(super) channel: UnixStream,
    pub(super) greeted: Greeted,
    pub(super) stderr: OwnedFd,
}

/// What a worker has been given with its greeting.
pub(super) struct Greeted {
    pub(super) claims: Claims,
    pub(super) sockets: Sockets,
    pub(super) ring: Option<Ring>,
}

/// What a worker is reached by, beside its channel.
pub(super) struct Sockets {
    /// Tells it which call is cancelled; its end tells it that we have gone.
    pub(super) control: UnixStream,
    /// Carries the handles in calls and answers.
    pub(super) luggage: UnixStream,
}

/// A worker's process: our own child, or one of the fork server.
pub(super) enum Handle {
    Child(Process),
    #[cfg(target_os = "linux")]
    Forked(super::forkserver::Forked),
}

impl Handle {
    pub(super) fn kill(&self) {
        match self {
            Handle::Child(child) => child.kill(),
            #[cfg(target_os = "linux")]
            Handle::Forked(forked) => forked.kill(),
        }
    }

    pub(super) fn signal(&self, signal: i32) {
        match self {
            Handle::Child(child) => child.signal(signal),
            #[cfg(target_os = "linux")]
            Handle::Forked(forked) => forked.signal(signal),
        }
    }

    pub(super) async fn wait(&self) -> WorkerExit {
        match self {
            Handle::Child(child) => child.wait().await,
            #[cfg(target_os = "linux")]
            Handle::Forked(forked) => forked.wait().await,
        }
    }
}

/// This program, or the one that was named, set to become what `role` says.
pub(super) fn command(config: &Config, role: Role, name: &str) -> io::Result<Command> {
    let program = match &config.executable {
        Some(path) => path.clone(),
        // The very file that runs here, even if another one has taken its place since.
        None if cfg!(target_os = "linux") => "/proc/self/exe".into(),
        None => std::env::current_exe()?,
    };
    let mut command = Command::new(program);
    let shown = std::env::args_os().next().unwrap_or_default();
    command.arg0(format!("{}: {name}", shown.to_string_lossy()));
    command.envs(config.env.iter().map(|(name, value)| (name, value)));
    command.env(VARIABLE, role.value());
    if let Some(path) = &config.current_dir {
        command.current_dir(path);
    }
    Ok(command)
}

/// Starts the program again as a worker.
pub(super) fn spawn(config: &Config, name: &str) -> io::Result<Started> {
    let (channel, theirs) = UnixStream::pair()?;
    let mut child = command(config, Role::Worker, name)?
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| explain(config, error))?;
    let pid = child.id();
    let stderr = child.stderr.take().map(OwnedFd::from);
    let process = Process::watch(child)?;
    let greeted = greet(config, name, &channel);
    match (greeted, stderr) {
        (Ok(greeted), Some(stderr)) => Ok(Started { pid, process: Handle::Child(process), channel, greeted, stderr }),
        (greeted, _) => {
            process.end();
            Err(greeted.err().unwrap_or_else(|| io::Error::other("the worker's stderr is missing")))
        }
    }
}

/// Names the program that could not be started.
pub(super) fn explain(config: &Config, error: io::Error) -> io::Error {
    let what = match (&config.executable, &config.current_dir) {
        (Some(path), _) => format!("the worker executable {} could not be started: {error}", path.display()),
        (None, Some(path)) => {
            format!("this program could not be started again in the directory {}: {error}", path.display())
        }
        (None, None) => format!("this program could not be started again: {error}"),
    };
    io::Error::new(error.kind(), what)
}

/// Sends the first frame, with the claim table, the control socket and the one for handles, and then the rings. Must be
/// called on the supervisor's runtime.
pub(super) fn greet(config: &Config, name: &str, channel: &UnixStream) -> io::Result<Greeted> {
    let (claims, table) = Claims::create(WINDOW)?;
    let (control, theirs) = UnixStream::pair()?;
    let (luggage, their_luggage) = UnixStream::pair()?;
    let hello = Hello {
        protocol: wire::PROTOCOL,
        name: name.to_owned(),
        slots: WINDOW as u64,
        max_message_size: config.max_message_size,
    };
    let frame = wire::frame(Header::new(Kind::Hello), &crate::codec::encode(&hello).map_err(io::Error::other)?);
    // The channel is fresh and this is little: it does not block.
    let sent = polypool_ipc::send_with_fds(channel, &frame, &[table.as_fd(), theirs.as_fd(), their_luggage.as_fd()])
        .and_then(|()| offer(config, channel));
    let ring = match sent {
        // It has ended already. How, and its last words, are told when its end is looked after like any other.
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => None,
        result => result?,
    };
    control.set_nonblocking(true)?;
    luggage.set_nonblocking(true)?;
    channel.set_nonblocking(true)?;
    Ok(Greeted { claims, sockets: Sockets { control, luggage }, ring })
}

/// Sends the rings, or that there are none.
fn offer(config: &Config, channel: &UnixStream) -> io::Result<Option<Ring>> {
    if config.ring_size > 0
        && let Ok((ring, luggage)) = Ring::make(config.ring_size, channel)
        // If the system carries no more descriptors, the byte has not gone either.
        && polypool_ipc::send_with_fds(channel, &[transport::RINGS], &luggage.each_ref().map(AsFd::as_fd)).is_ok()
    {
        return Ok(Some(ring));
    }
    polypool_ipc::send_with_fds(channel, &[transport::NO_RINGS], &[])?;
    Ok(None)
}
