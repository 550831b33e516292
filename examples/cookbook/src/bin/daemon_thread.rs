//! `threading.Thread(daemon=True)`: a loop in the background that answers a request and ends with the program.
//!
//! All threads of a Rust program are daemons: they end with `main`, and whoever is to be waited for is joined. What
//! has to be tidied up at the end belongs into a thread that is joined.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

fn background(requests: &Receiver<(String, Sender<()>)>, ticks: &Sender<()>) {
    loop {
        match requests.recv_timeout(Duration::from_millis(10)) {
            Ok((request, answered)) => {
                println!("request: {request}");
                let _ = answered.send(());
            }
            Err(RecvTimeoutError::Timeout) => {
                println!("running...");
                let _ = ticks.send(());
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn main() {
    let (requests, inbox) = channel();
    let (ticker, ticks) = channel();
    thread::spawn(move || background(&inbox, &ticker)); // never joined: a daemon
    let t2 = thread::spawn({
        let requests = requests.clone();
        move || {
            let (answer, answered) = channel();
            ticks.iter().take(3).for_each(drop); // when it has said "running..." three times
            requests.send(("hello".to_owned(), answer)).expect("the background runs");
            answered.recv().expect("the background answers");
            println!("end of t2");
        }
    });
    t2.join().expect("t2 doesn't panic");
    println!("end of main");
}
