//! Killing a child and hearing how it ended.
#![cfg(unix)]

use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use polypool_ipc::{Exit, PidFd, SIGKILL, SIGTERM, try_wait_pid};

/// A child that is waited for by its number only.
fn shell(script: &str) -> i32 {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).arg0("polypool-ipc-test").stdin(Stdio::null());
    command.spawn().unwrap().id() as i32
}

fn wait(pid: i32) -> Exit {
    loop {
        if let Some(exit) = try_wait_pid(pid).unwrap() {
            return exit;
        }
        std::thread::yield_now();
    }
}

#[test]
fn an_exit_code_is_told_once() {
    let child = shell("exit 3");
    let exit = wait(child);
    assert_eq!(exit, Exit::Code(3));
    assert_eq!(exit.to_string(), "exited with code 3");
    assert_eq!(try_wait_pid(child).unwrap_err().raw_os_error(), Some(10), "ECHILD");
}

#[test]
fn numbers_that_mean_no_single_process_are_refused() {
    for pid in [0, -1, i32::MIN] {
        assert_eq!(try_wait_pid(pid).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(PidFd::open(pid).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    assert!(try_wait_pid(1).is_err(), "not our child");
}

#[test]
fn a_signal_is_told_with_its_number() {
    let exit = wait(shell("kill -TERM $$"));
    assert!(matches!(exit, Exit::Signal { signal: SIGTERM, core_dumped: false }), "{exit:?}");
    assert_eq!(exit.to_string(), "was killed by signal 15");
    let dumped = Exit::Signal { signal: 11, core_dumped: true };
    assert_eq!(dumped.to_string(), "was killed by signal 11 (core dumped)");
}

#[cfg(target_os = "linux")]
mod linux {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    #[test]
    fn a_child_is_killed_by_descriptor_and_the_descriptor_tells_when_it_ends() {
        let child = shell("exec sleep 1000");
        let pidfd = PidFd::open(child).unwrap();
        assert_eq!(try_wait_pid(child).unwrap(), None, "it runs");
        pidfd.kill(SIGKILL).unwrap();
        let mut watched = [PollFd::new(&pidfd, PollFlags::IN)];
        assert_eq!(poll(&mut watched, None).unwrap(), 1);
        pidfd.kill(SIGKILL).unwrap(); // ended, but not waited for
        let exit = try_wait_pid(child).unwrap();
        assert_eq!(exit, Some(Exit::Signal { signal: SIGKILL, core_dumped: false }));
        assert_eq!(pidfd.kill(SIGKILL).unwrap_err().raw_os_error(), Some(3), "ESRCH, and nobody else is hit");
    }

    #[test]
    fn signals_that_do_not_exist_are_refused() {
        let child = shell("read line < /dev/null; exit 0");
        let pidfd = PidFd::open(child).unwrap();
        for signal in [0, -9, 4711] {
            assert_eq!(pidfd.kill(signal).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        assert_eq!(wait(child), Exit::Code(0));
    }

    #[test]
    fn the_descriptor_is_not_inherited() {
        let pidfd = PidFd::open(std::process::id() as i32).unwrap();
        let flags = rustix::io::fcntl_getfd(&pidfd).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
}

#[cfg(not(target_os = "linux"))]
#[test]
fn other_systems_say_unsupported() {
    let error = PidFd::open(std::process::id() as i32).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
