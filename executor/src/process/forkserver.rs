//! The fork server: a small process, started once, that has a single thread and forks the workers.
//!
//! Over its channel it gets a byte with two descriptors (a worker's channel and stderr) for each worker that is wanted,
//! and answers with the process id and a pidfd. As their parent it reaps the workers, and reports how they ended. When
//! its channel ends, it ends; the workers notice the end of the pool by themselves.
//!
//! A fork copies one thread only, so a lock that another thread holds would stay locked for ever in the copy. That is
//! why the server becomes what it is before the program has started a thread, and why each fork checks that there is
//! none.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future as _;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::process::Stdio;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polypool_ipc::{Exit, Fork, PidFd};
use tokio::io::Interest;
use tokio::sync::oneshot;

use super::Config;
use super::entry::{Role, TasksOn};
use super::pool::Pool;
use super::start::{self, Started};
use super::sys::{End, Process};
use crate::error::WorkerExit;

/// A message of the server: what, the process id, and a number.
const MESSAGE: usize = 12;
/// For how long a server that is no longer wanted waits for its workers.
const REAP: Duration = Duration::from_millis(900);

const FORKED: i32 = 1;
const FAILED: i32 = 2;
const EXITED: i32 = 3;
const KILLED: i32 = 4;

fn message(kind: i32, pid: i32, number: i32) -> [u8; MESSAGE] {
    let mut bytes = [0; MESSAGE];
    bytes[0..4].copy_from_slice(&kind.to_le_bytes());
    bytes[4..8].copy_from_slice(&pid.to_le_bytes());
    bytes[8..12].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn read_message(bytes: &[u8; MESSAGE]) -> (i32, i32, i32) {
    let number = |at: usize| i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    (number(0), number(4), number(8))
}

// ---- The server ----------------------------------------------------------------------------------------------------

/// Forks workers until the channel ends, and then ends the process.
pub(super) fn serve(channel: UnixStream, tasks_on: TasksOn) -> ! {
    polypool_ipc::set_process_name("polypool-fork");
    let code = match Server::run(&channel) {
        Ok(Next::Ended) => 0,
        Ok(Next::Worker(worker)) => {
            drop(channel);
            super::entry::serve(worker, tasks_on)
        }
        // The parent has gone, and had not read everything.
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => 0,
        Err(error) => {
            eprintln!("polypool: the fork server ends: {error}");
            2
        }
    };
    std::process::exit(code)
}

enum Next {
    /// The parent has gone.
    Ended,
    /// This is the child: a worker with this channel.
    Worker(UnixStream),
}

struct Server;

impl Server {
    fn run(mut channel: &UnixStream) -> io::Result<Next> {
        let mut workers: HashMap<i32, PidFd> = HashMap::new();
        loop {
            let (request, ended) = {
                use rustix::event::{PollFd, PollFlags, poll};
                let pids: Vec<i32> = workers.keys().copied().collect();
                let mut waits = vec![PollFd::new(channel, PollFlags::IN)];
                waits.extend(workers.values().map(|worker| PollFd::new(worker, PollFlags::IN)));
                match poll(&mut waits, None) {
                    Err(rustix::io::Errno::INTR) => continue,
                    result => result?,
                };
                let ended: Vec<i32> = pids
                    .into_iter()
                    .zip(&waits[1..])
                    .filter(|(_, wait)| !wait.revents().is_empty())
                    .map(|(pid, _)| pid)
                    .collect();
                (!waits[0].revents().is_empty(), ended)
            };
            for pid in ended {
                if let Some(exit) = polypool_ipc::try_wait_pid(pid)? {
                    workers.remove(&pid);
                    let report = match exit {
                        Exit::Code(code) => message(EXITED, pid, code),
                        Exit::Signal { signal, .. } => message(KILLED, pid, signal),
                    };
                    channel.write_all(&report)?;
                }
            }
            if !request {
                continue;
            }
            let mut byte = [0; 1];
            let (count, descriptors) = polypool_ipc::recv_with_fds(channel, &mut byte, 2)?;
            if count == 0 {
                Self::reap(&workers);
                return Ok(Next::Ended);
            }
            let [worker, stderr] = <[OwnedFd; 2]>::try_from(descriptors)
                .map_err(|_| io::Error::other("a request to fork carries 2 descriptors"))?;
            match polypool_ipc::fork_single_threaded() {
                Ok(Fork::Child) => {
                    rustix::stdio::dup2_stderr(&stderr)?;
                    return Ok(Next::Worker(UnixStream::from(worker)));
                }
                Ok(Fork::Parent { child }) => {
                    let pidfd = PidFd::open(child)?;
                    polypool_ipc::send_with_fds(channel, &message(FORKED, child, 0), &[pidfd.as_fd()])?;
                    workers.insert(child, pidfd);
                }
                Err(error) => {
                    eprintln!("polypool: {error}");
                    channel.write_all(&message(FAILED, 0, error.raw_os_error().unwrap_or(0)))?;
                }
            }
        }
    }
}

impl Server {
    /// Waits for the workers that are left: without the pool they end by themselves, and should find somebody who reaps
    /// them. Not for ever, because one of them may be stopped.
    fn reap(workers: &HashMap<i32, PidFd>) {
        let until = Instant::now() + REAP;
        for (pid, worker) in workers {
            use rustix::event::{PollFd, PollFlags, Timespec, poll};
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            let _ = poll(&mut [PollFd::new(worker, PollFlags::IN)], Some(&left));
            let _ = polypool_ipc::try_wait_pid(*pid);
        }
    }
}

// ---- The supervisor's side -----------------------------------------------------------------------------------------

/// The fork server, as the supervisor sees it.
pub(super) struct ForkServer {
    channel: tokio::net::UnixStream,
    process: Process,
    is_ending: Cell<bool>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// Who waits for a fork, in the order of the requests.
    requests: VecDeque<oneshot::Sender<io::Result<(i32, PidFd)>>>,
    /// Who waits for the exit of a worker.
    exits: HashMap<i32, oneshot::Sender<WorkerExit>>,
    /// Exits that were reported before the one who will wait for them had its turn.
    early: HashMap<i32, WorkerExit>,
    /// Why there is no server any more.
    gone: Option<String>,
}

impl ForkServer {
    /// Starts the server; must be called within the supervisor's `LocalSet`.
    pub(super) fn start(pool: &Arc<Pool>) -> io::Result<Rc<Self>> {
        let config = &pool.config;
        let (channel, theirs) = UnixStream::pair()?;
        let child = start::command(config, Role::ForkServer, "fork server")?
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .map_err(|error| start::explain(config, error))?;
        let process = Process::watch(child)?;
        channel.set_nonblocking(true)?;
        let server = Rc::new(ForkServer {
            channel: tokio::net::UnixStream::from_std(channel)?,
            process,
            is_ending: Cell::new(false),
            state: RefCell::new(State::default()),
        });
        let (reading, pool) = (server.clone(), pool.clone());
        tokio::task::spawn_local(async move {
            let end = reading.read().await;
            reading.process.kill();
            let exit = reading.process.wait().await;
            let mut state = reading.state.borrow_mut();
            let why = match end {
                Err(error) if error.kind() != io::ErrorKind::ConnectionReset => {
                    format!("the fork server was killed, because its message could not be read: {error}")
                }
                // Its channel has ended; how it has itself says more.
                _ => format!("the fork server {exit}: does its program call polypool::init() first of all?"),
            };
            for request in state.requests.drain(..) {
                let _ = request.send(Err(io::Error::other(why.clone())));
            }
            state.gone = Some(why);
            // Dropping the senders says "unknown" to those who wait for an exit.
            state.exits.clear();
            drop(state);
            // The end of the pool may wait for this.
            pool.notify.notify_one();
        });
        Ok(server)
    }

    /// Whether the server has ended, so that another one must be started.
    pub(super) fn is_gone(&self) -> bool {
        self.state.borrow().gone.is_some()
    }

    /// Lets the server end: it reaps what it has forked, and goes. If it does not, it is killed.
    pub(super) fn end(self: &Rc<Self>) {
        if self.is_ending.replace(true) {
            return;
        }
        let _ = rustix::net::shutdown(&self.channel, rustix::net::Shutdown::Write);
        let server = self.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(2 * REAP).await;
            server.process.kill();
        });
    }

    /// Waits for no more forks: whoever does is told so. The server itself goes on, because it has to reap its workers.
    pub(super) fn give_up(&self) {
        for request in self.state.borrow_mut().requests.drain(..) {
            let _ = request.send(Err(io::Error::other("the pool is shut down")));
        }
    }

    /// Forks a worker.
    pub(super) async fn spawn(&self, config: &Config, name: &str) -> io::Result<Started> {
        let (channel, theirs) = UnixStream::pair()?;
        let (stderr, their_stderr) = io::pipe()?;
        let (sender, receiver) = oneshot::channel();
        loop {
            self.channel.writable().await?;
            let sent = self.channel.try_io(Interest::WRITABLE, || {
                polypool_ipc::send_with_fds(&self.channel, b"F", &[theirs.as_fd(), their_stderr.as_fd()])
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // It has ended; `read` is about to tell those who wait how.
                Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    break;
                }
                result => break result?,
            }
        }
        if let Some(why) = &self.state.borrow().gone {
            return Err(io::Error::other(why.clone()));
        }
        // Only now, and with no await in between: the answers come in the order in which the requests were sent.
        self.state.borrow_mut().requests.push_back(sender);
        drop((theirs, their_stderr));
        let (pid, pidfd) = tokio::time::timeout(config.handshake_timeout, receiver)
            .await
            .map_err(|_| {
                io::Error::other(format!(
                    "the fork server did not answer within {:?}: does its program call polypool::init()?",
                    config.handshake_timeout
                ))
            })?
            .map_err(|_| io::Error::other("the fork server ended"))??;
        let (sender, exit) = oneshot::channel();
        {
            let mut state = self.state.borrow_mut();
            if let Some(exit) = state.early.remove(&pid) {
                let _ = sender.send(exit);
            } else if state.gone.is_none() {
                state.exits.insert(pid, sender);
            }
        }
        let forked = Forked { end: End::new(pidfd)?, exit: RefCell::new(exit) };
        let greeted = match start::greet(config, name, &channel) {
            Ok(greeted) => greeted,
            Err(error) => {
                forked.kill();
                // Until the server has reaped it.
                forked.wait().await;
                return Err(error);
            }
        };
        Ok(Started {
            pid: pid.unsigned_abs(),
            process: start::Handle::Forked(forked),
            channel,
            greeted,
            stderr: stderr.into(),
        })
    }

    /// Hands out what the server says, until it ends.
    async fn read(&self) -> io::Result<()> {
        loop {
            let mut bytes = [0; MESSAGE];
            let mut have = 0;
            let mut descriptors = Vec::new();
            while have < MESSAGE {
                self.channel.readable().await?;
                let read = self
                    .channel
                    .try_io(Interest::READABLE, || polypool_ipc::recv_with_fds(&self.channel, &mut bytes[have..], 1));
                match read {
                    Ok((0, _)) => return Ok(()),
                    Ok((count, received)) => {
                        have += count;
                        descriptors.extend(received);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            let mut state = self.state.borrow_mut();
            match read_message(&bytes) {
                (FORKED, pid, _) => {
                    let pidfd = descriptors.pop().map(PidFd::from).ok_or_else(|| io::Error::other("no pidfd"));
                    if let Some(request) = state.requests.pop_front() {
                        let _ = request.send(pidfd.map(|pidfd| (pid, pidfd)));
                    }
                }
                (FAILED, _, code) => {
                    if let Some(request) = state.requests.pop_front() {
                        let error = match code {
                            0 => io::Error::other("the fork server can't fork: see its message on stderr"),
                            code => io::Error::from_raw_os_error(code),
                        };
                        let _ = request.send(Err(error));
                    }
                }
                (kind @ (EXITED | KILLED), pid, number) => {
                    let exit = if kind == EXITED { WorkerExit::Code(number) } else { WorkerExit::Signal(number) };
                    match state.exits.remove(&pid) {
                        Some(waiter) => {
                            let _ = waiter.send(exit);
                        }
                        None => {
                            state.early.insert(pid, exit);
                        }
                    }
                }
                (kind, ..) => return Err(io::Error::other(format!("it sent a message of the unknown kind {kind}"))),
            }
        }
    }
}

/// A worker that the server has forked.
pub(super) struct Forked {
    end: End,
    exit: RefCell<oneshot::Receiver<WorkerExit>>,
}

impl Forked {
    pub(super) fn kill(&self) {
        self.end.kill();
    }

    pub(super) fn signal(&self, signal: i32) {
        self.end.signal(signal);
    }

    /// Waits until it has ended and the server has said how.
    ///
    /// # Cancellation safety
    /// Can be dropped and called again, until it has returned.
    pub(super) async fn wait(&self) -> WorkerExit {
        self.end.wait().await;
        // The server reports at once; if it is dead itself, nobody will. The receiver stays here, so that a wait that
        // is dropped half-way loses nothing.
        let exit = std::future::poll_fn(|cx| Pin::new(&mut *self.exit.borrow_mut()).poll(cx));
        match tokio::time::timeout(Duration::from_secs(1), exit).await {
            Ok(Ok(exit)) => exit,
            _ => WorkerExit::Unknown,
        }
    }
}
