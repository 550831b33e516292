//! The claim table between two real processes: one starts calls, the other takes them back, both as fast as they can.

#[cfg(unix)]
mod common;

#[cfg(unix)]
mod tests {
    use std::hint::spin_loop;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::thread::yield_now;

    use polypool_ipc::{ClaimState, Claims, recv_with_fds, send_with_fds, take_stdin};

    use super::common::{Test, again};

    pub(crate) const TESTS: &[Test] = &[
        ("each_of_10000_calls_is_run_once_or_revoked", race),
        ("the_word_names_the_call_a_dead_worker_was_running", death),
    ];
    pub(crate) const PARTS: &[Test] = &[("worker", worker), ("dying worker", dying_worker)];

    const ROUNDS: u64 = 10_000;
    /// The call; its slot is used again in every round.
    const CALL: usize = 0;
    /// Where the worker says that it has decided about a call.
    const DECIDED: usize = 1;
    const SLOTS: usize = 2;

    fn race() {
        let (channel, theirs) = UnixStream::pair().unwrap();
        let mut worker = again("worker").stdin(std::os::fd::OwnedFd::from(theirs)).spawn().unwrap();
        let (claims, fd) = Claims::create(SLOTS).unwrap();
        send_with_fds(&channel, b"!", &[fd.as_fd()]).unwrap();

        let mut revoked = Vec::new();
        // Steered so that either side wins about as often.
        let mut head_start = 0_u32;
        for call in 1..=ROUNDS {
            assert!(claims.send(CALL, call));
            for _ in 0..head_start {
                spin_loop();
            }
            let won = claims.revoke(CALL, call);
            revoked.push(u8::from(won));
            head_start = if won { head_start + 3 } else { head_start.saturating_sub(3) };
            while claims.state(DECIDED, call) != ClaimState::Sent {
                yield_now();
            }
            let after = claims.state(CALL, call);
            assert_eq!(after, if won { ClaimState::Revoked } else { ClaimState::Finished });
        }

        let mut started = Vec::new();
        (&channel).read_to_end(&mut started).unwrap();
        assert!(worker.wait().unwrap().success());
        assert_eq!(started.len(), revoked.len());
        let both = started.iter().zip(&revoked).filter(|(s, r)| (**s, **r) == (1, 1)).count();
        let neither = started.iter().zip(&revoked).filter(|(s, r)| (**s, **r) == (0, 0)).count();
        assert_eq!((both, neither), (0, 0), "run and revoked, neither run nor revoked");
        let count = started.iter().filter(|s| **s == 1).count();
        assert!(count > 0 && count < started.len(), "no race: {count} of {ROUNDS} were started");
        print!("({count} run, {} revoked) ", started.len() - count);
    }

    fn open_table() -> (UnixStream, Claims) {
        let channel = UnixStream::from(take_stdin().unwrap());
        let mut byte = [0];
        let (bytes, mut fds) = recv_with_fds(&channel, &mut byte, 1).unwrap();
        assert_eq!((bytes, fds.len()), (1, 1));
        let claims = Claims::open(fds.remove(0), SLOTS).unwrap();
        (channel, claims)
    }

    fn worker() {
        let (mut channel, claims) = open_table();
        let mut started = Vec::new();
        for call in 1..=ROUNDS {
            let mut spins = 0_u32;
            while claims.state(CALL, call) == ClaimState::Unknown {
                spins += 1;
                // Close to the other side as long as it runs, and out of its way when it doesn't.
                if spins.is_multiple_of(1000) { yield_now() } else { spin_loop() }
            }
            let mine = claims.start(CALL, call);
            started.push(u8::from(mine));
            assert!(!claims.start(CALL, call), "started twice");
            assert_eq!(claims.finish(CALL, call), mine);
            assert!(claims.send(DECIDED, call));
        }
        channel.write_all(&started).unwrap();
    }

    fn death() {
        let (channel, theirs) = UnixStream::pair().unwrap();
        let mut worker = again("dying worker").stdin(std::os::fd::OwnedFd::from(theirs)).spawn().unwrap();
        let (claims, fd) = Claims::create(SLOTS).unwrap();
        assert!(claims.send(0, 11) && claims.send(1, 12));
        send_with_fds(&channel, b"!", &[fd.as_fd()]).unwrap();
        assert_eq!(worker.wait().unwrap().code(), Some(70));
        assert_eq!(claims.state(0, 11), ClaimState::Started, "the culprit");
        assert_eq!(claims.state(1, 12), ClaimState::Sent, "never ran");
        assert!(!claims.revoke(0, 11));
        assert!(claims.revoke(1, 12), "free for another worker");
    }

    fn dying_worker() {
        let (_channel, claims) = open_table();
        assert!(claims.start(0, 11));
        polypool_ipc::die_now();
    }
}

#[cfg(unix)]
fn main() -> std::process::ExitCode {
    common::main(tests::TESTS, tests::PARTS)
}

#[cfg(not(unix))]
fn main() {}
