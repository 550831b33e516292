//! No worker outlives its program, however that ends.

use std::process::{Child, Command, Stdio};

use integration_tests::{Board, Gate, Row, eventually, rows, seconds};
use polypool::{ExecutorExt, StartMethod};
use rustix::process::Signal;

use crate::both;
use crate::common::{others, pass_pid, pool, signal, spin_through_sigterm};

pub(crate) const ROWS: &[Row<fn()>] = both![
    orphans_end_when_the_parent_is_killed,
    orphans_end_when_the_parent_aborts,
    orphans_end_when_the_parent_is_terminated,
    orphans_end_when_the_parent_returns_from_main,
    orphans_end_when_the_fork_server_dies_as_well,
];

pub(crate) const PROGRAMS: &[Row<fn()>] = rows![parent];

/// A program with a pool: three workers, of which one waits at a gate and two never end. It ends with its input.
fn parent() {
    let gate = |name| serde_json::from_str::<Gate>(&std::env::var(name).expect("a gate")).expect("a gate");
    let method = if std::env::var_os("FORK").is_some() { StartMethod::ForkServer } else { StartMethod::Spawn };
    let pool = pool(method, 3);
    let spinning = [0, 1].map(|_| pool.submit(spin_through_sigterm { gate: gate("STARTED") }));
    let waiting = pool.submit(pass_pid { gate: gate("HOLD") });
    let _ = std::io::Read::read_to_end(&mut std::io::stdin(), &mut Vec::new());
    std::mem::forget((pool, spinning, waiting));
}

/// Starts the program, and waits until its workers are busy.
fn start(method: StartMethod, board: &Board) -> Child {
    let json = |gate: &Gate| serde_json::to_string(gate).expect("plain data");
    let (started, hold) = (board.gate("started"), board.gate("hold"));
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--trial", "parent"]).env("STARTED", json(&started)).env("HOLD", json(&hold));
    if method == StartMethod::ForkServer {
        command.env("FORK", "1");
    }
    let child = command.stdin(Stdio::piped()).spawn().expect("the program starts");
    started.wait_for_arrivals(2);
    hold.wait_for_arrivals(1);
    child
}

fn ending(method: StartMethod, end: fn(&mut Child)) {
    let board = Board::new();
    let mut parent = start(method, &board);
    let workers = 3 + usize::from(method == StartMethod::ForkServer);
    assert_eq!(others().len(), 1 + workers, "{:?}", others());
    end(&mut parent);
    parent.wait().expect("it has ended");
    // Whoever inherits the orphans may take its time to reap them.
    let gone = eventually(seconds(2), || others().iter().all(|seen| seen.is_zombie()));
    assert!(gone, "left over: {:?}", others());
}

fn orphans_end_when_the_parent_is_killed(method: StartMethod) {
    ending(method, |parent| signal(parent.id(), Signal::KILL));
}

fn orphans_end_when_the_parent_aborts(method: StartMethod) {
    ending(method, |parent| signal(parent.id(), Signal::ABORT));
}

fn orphans_end_when_the_parent_is_terminated(method: StartMethod) {
    ending(method, |parent| signal(parent.id(), Signal::TERM));
}

fn orphans_end_when_the_parent_returns_from_main(method: StartMethod) {
    ending(method, |parent| drop(parent.stdin.take()));
}

fn orphans_end_when_the_fork_server_dies_as_well(method: StartMethod) {
    ending(method, |parent| {
        for seen in others().into_iter().filter(|seen| seen.name == "polypool-fork") {
            signal(seen.pid, Signal::KILL);
        }
        signal(parent.id(), Signal::KILL);
    });
}
