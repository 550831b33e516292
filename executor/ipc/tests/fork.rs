//! Forking: allowed with one thread, refused with more.

#[cfg(unix)]
mod common;

#[cfg(unix)]
mod tests {
    use std::io::{self, Read, Write};
    use std::process::exit;
    use std::sync::mpsc;
    use std::thread;

    use polypool_ipc::{
        ClaimState, Claims, Exit, Fork, NotSingleThreaded, fork_generation, fork_single_threaded, try_wait_pid,
    };

    use super::common::Test;

    pub(crate) const TESTS: &[Test] = &[
        ("a_process_with_one_thread_forks", forks),
        ("a_process_with_two_threads_is_refused", refused),
        ("a_child_is_of_another_generation_than_its_parent", generations),
        ("a_thread_that_has_been_joined_does_not_count", joined),
        ("the_child_may_start_threads_and_allocate", child_is_whole),
        ("a_claim_table_is_shared_over_a_fork", table),
    ];

    fn wait(child: i32) -> Exit {
        loop {
            if let Some(exit) = try_wait_pid(child).unwrap() {
                return exit;
            }
            thread::yield_now();
        }
    }

    /// Runs `body` in a child and says how that ended.
    fn in_child(body: impl FnOnce() -> i32) -> Exit {
        match fork_single_threaded().unwrap() {
            Fork::Child => exit(body()),
            Fork::Parent { child } => wait(child),
        }
    }

    fn forks() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        let parent = std::process::id();
        match fork_single_threaded().unwrap() {
            Fork::Child => {
                assert_ne!(std::process::id(), parent);
                writer.write_all(&std::process::id().to_ne_bytes()).unwrap();
                exit(7);
            }
            Fork::Parent { child } => {
                assert_eq!(std::process::id(), parent);
                let mut id = [0; 4];
                reader.read_exact(&mut id).unwrap();
                assert_eq!(u32::from_ne_bytes(id), child as u32);
                assert_eq!(wait(child), Exit::Code(7));
            }
        }
    }

    fn refused() {
        let (stop, stopped) = mpsc::channel::<()>();
        let (up, ready) = mpsc::channel();
        let other = thread::spawn(move || {
            up.send(()).unwrap();
            let _ = stopped.recv();
        });
        ready.recv().unwrap();
        let error = match fork_single_threaded() {
            Err(error) => error,
            Ok(Fork::Child) => exit(0),
            Ok(Fork::Parent { .. }) => panic!("forked with two threads"),
        };
        assert_eq!(error.to_string(), "can't fork: the process has 2 threads, and only one is safe");
        let cause = error.get_ref().unwrap().downcast_ref::<NotSingleThreaded>().unwrap();
        assert_eq!(cause.threads, 2);
        drop(stop);
        other.join().unwrap();
    }

    fn generations() {
        let ours = fork_generation();
        let exit = in_child(|| {
            let theirs = fork_generation();
            let exit = in_child(|| i32::from([ours, theirs].contains(&fork_generation())));
            i32::from(theirs == ours || theirs != fork_generation() || exit != Exit::Code(0))
        });
        assert_eq!(exit, Exit::Code(0));
        assert_eq!(fork_generation(), ours);
    }

    fn joined() {
        for _ in 0..200 {
            thread::spawn(|| {}).join().unwrap();
            assert_eq!(in_child(|| 0), Exit::Code(0));
        }
    }

    fn child_is_whole() {
        let exit = in_child(|| {
            let threads: Vec<_> = (0..4).map(|n| thread::spawn(move || vec![n; 100_000].len())).collect();
            let total: usize = threads.into_iter().map(|t| t.join().unwrap()).sum();
            i32::from(total != 400_000)
        });
        assert_eq!(exit, Exit::Code(0));
    }

    fn table() {
        let (claims, _fd) = Claims::create(4).unwrap();
        assert!(claims.send(3, 9));
        assert_eq!(in_child(|| i32::from(!claims.start(3, 9))), Exit::Code(0));
        assert_eq!(claims.state(3, 9), ClaimState::Started);
    }
}

#[cfg(unix)]
fn main() -> std::process::ExitCode {
    common::main(tests::TESTS, &[])
}

#[cfg(not(unix))]
fn main() {}
