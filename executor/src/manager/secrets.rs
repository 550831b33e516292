//! How keys get into the process of a server: through a socket of their own, whose end travels with the setup.
//!
//! What is an argument of a task is copied into buffers and, on Linux, into memory that two processes share, and nobody
//! wipes it there. Bytes in a socket are in the kernel alone, and gone when they were read; those before and after it
//! are wiped here when they are dropped. What a key is, and when it may be dropped, is known to others.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use polypool_ipc::Fd;
use zeroize::Zeroizing;

/// How long each end waits for the other one, which has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// The largest secret.
const MOST: usize = 64 << 20;

/// Stands for the length of a secret that there is not.
const NONE: u64 = u64::MAX;

/// Bytes that are wiped.
pub(super) type Secret = Zeroizing<Vec<u8>>;

/// The end of whoever knows the secrets.
pub(super) struct Sender {
    socket: UnixStream,
    bytes: Secret,
}

/// Secrets on their way, and the end for the other process.
pub(super) fn channel<const N: usize>(secrets: [Option<&[u8]>; N]) -> io::Result<(Fd, Sender)> {
    if secrets.iter().flatten().any(|secret| secret.len() > MOST) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a key is larger than 64 MiB"));
    }
    let len = |secret: Option<&[u8]>| secret.map_or(0, <[u8]>::len);
    // In one piece: one that grows leaves copies behind.
    let mut bytes = Secret::new(Vec::with_capacity(secrets.iter().map(|secret| 8 + len(*secret)).sum()));
    for secret in secrets {
        bytes.extend_from_slice(&secret.map_or(NONE, |secret| secret.len() as u64).to_le_bytes());
        bytes.extend_from_slice(secret.unwrap_or_default());
    }
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_write_timeout(Some(PATIENCE))?;
    Ok((Fd::new(theirs.into()), Sender { socket: ours, bytes }))
}

impl Sender {
    /// Sends them; waits for the other process only if they are many.
    pub(super) fn send(mut self) -> io::Result<()> {
        self.socket.write_all(&self.bytes)
    }
}

/// Takes the secrets, in the other process.
pub(super) fn receive<const N: usize>(from: Fd) -> io::Result<[Option<Secret>; N]> {
    let mut socket = UnixStream::from(from.into_inner()?);
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut secrets = [const { None }; N];
    for secret in &mut secrets {
        let mut len = [0; 8];
        socket.read_exact(&mut len)?;
        let len = match u64::from_le_bytes(len) {
            NONE => continue,
            len => usize::try_from(len).ok().filter(|len| *len <= MOST),
        };
        let len = len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a key of an impossible length"))?;
        let mut bytes = Secret::new(vec![0; len]);
        socket.read_exact(&mut bytes)?;
        *secret = Some(bytes);
    }
    Ok(secrets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_arrive_as_they_were() {
        // The last one is more than sockets hold.
        let large = vec![3; 3 << 20];
        let (fd, sender) = channel([Some(b"one".as_slice()), None, Some(&[]), Some(&large)]).unwrap();
        let sender = std::thread::spawn(move || sender.send());
        let got = receive::<4>(fd).unwrap().map(|secret| secret.map(|secret| secret.to_vec()));
        assert_eq!(got, [Some(b"one".to_vec()), None, Some(Vec::new()), Some(large)]);
        sender.join().unwrap().unwrap();
    }

    #[test]
    fn an_end_that_is_gone_is_an_error() {
        let (fd, sender) = channel([Some([1; 8].as_slice())]).unwrap();
        drop(sender);
        assert_eq!(receive::<1>(fd).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let (fd, sender) = channel([Some([1; 8].as_slice())]).unwrap();
        drop(fd);
        assert_eq!(sender.send().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(channel([Some(vec![0; MOST + 1].as_slice())]).is_err());
    }
}
