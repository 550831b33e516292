//! `concurrent.futures.as_completed` with a timeout: six requests, each of which a local server answers after a delay.
//!
//! A delay of -1 is answered with an error, at once; the sixth isn't answered in time. A timeout ends the wait and not
//! the tasks. (In earnest, take `reqwest` and `spawn_async`.)

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_ext::as_completed;
use polypool::ThreadPool;

const UNIT: Duration = Duration::from_millis(100); // a second in the Python program

fn answer(mut client: TcpStream) -> anyhow::Result<()> {
    let mut request = String::new();
    BufReader::new(&client).read_line(&mut request)?;
    let delay = request.split('/').nth(1).and_then(|path| path.split(' ').next()).context("no path")?;
    let status = match delay.parse() {
        Ok(units) => {
            thread::sleep(UNIT * units);
            "200 OK"
        }
        Err(_) => "400 Bad Request",
    };
    Ok(write!(client, "HTTP/1.0 {status}\r\n\r\n")?)
}

fn fetch(server: SocketAddr, delay: i32) -> anyhow::Result<i32> {
    let mut stream = TcpStream::connect(server)?;
    write!(stream, "GET /{delay} HTTP/1.0\r\n\r\n")?;
    let status = BufReader::new(stream).lines().next().context("no answer")??;
    ensure!(status.contains("200"), "{status}");
    Ok(delay)
}

fn main() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let server = listener.local_addr()?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(move || answer(client));
        }
    });
    let pool = ThreadPool::builder().workers(6).build()?;
    let requests = [3, 1, 2, 4, 600, -1].map(|delay| pool.spawn(move || fetch(server, delay)).tagged(delay));
    for item in as_completed(requests).timeout(UNIT * 12).blocking() {
        match item {
            Ok((delay, outcome)) => match outcome? {
                Ok(slept) => println!("{slept}"),
                Err(error) => println!("{delay}: error: {error}"),
            },
            Err(unfinished) => println!("{unfinished}"),
        }
    }
    Ok(())
}
