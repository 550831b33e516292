//! Runners leave nothing behind: each leads a process group of its own, which is killed when its round is over, and when
//! this program is interrupted or panics.
//!
//! If this program is killed, runners notice the end of their standard input.

use std::io;
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};

/// The group that runs now. Whoever holds the lock is the only one to start or kill one.
static CURRENT: Mutex<Option<u32>> = Mutex::new(None);

/// A process and all that it starts.
#[derive(Debug)]
pub(crate) struct Group(Child);

impl Group {
    /// Starts the leader of a new group.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(command, 0);
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let leader = command.spawn()?;
        *current = Some(leader.id());
        Ok(Group(leader))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn leader(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        *current = None;
        // Before the wait: until then the number can't belong to anybody else.
        kill(self.0.id());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// From now on Ctrl-C and SIGTERM end what runs, and then this program with the exit code that shells give.
pub(crate) fn end_with_this_program() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| {
        // Kept to the end, so that no other group is started.
        let current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = *current {
            kill(id);
        }
        std::process::exit(130);
    })
}

#[cfg(unix)]
fn kill(group: u32) {
    if let Ok(group) = i32::try_from(group) {
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), nix::sys::signal::Signal::SIGKILL);
    }
}

#[cfg(not(unix))]
fn kill(_group: u32) {}
