//! Where a manager listens, as a value and as text.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a manager listens.
///
/// As text: `unix:/path`, `unix:@name` (a name without a file, Linux), `tcp://host:port` and `tls://host:port`.
///
/// ```
/// use polypool::manager::Address;
///
/// let address: Address = "tcp://[::1]:4242".parse()?;
/// assert_eq!(address, Address::Tcp { host: "::1".to_owned(), port: 4242, tls: false });
/// assert_eq!(address.to_string(), "tcp://[::1]:4242");
/// # Ok::<(), polypool::manager::ParseAddressError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Address {
    /// A Unix socket at a path.
    Unix(PathBuf),
    /// A Unix socket with a name that isn't in the file system and goes with its owner, however that ends (Linux).
    Abstract(String),
    /// A TCP port.
    Tcp {
        /// A name or an address; with TLS, the name that is in the server's certificate.
        host: String,
        /// Its number.
        port: u16,
        /// Whether TLS is spoken there.
        tls: bool,
    },
}

/// Where a manager is to listen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum BindTo {
    /// A Unix socket for processes of this user on this machine, under a random name. On Linux the name isn't in the
    /// file system, so nothing is left behind by a manager that is killed; on other systems it is as `PrivateFile`.
    #[default]
    Private,
    /// A Unix socket in a new directory that only this user can enter, in the directory for temporary files. For peers
    /// that share the file system but not the network namespace. The directory is removed when the manager ends, though
    /// not when it is killed.
    PrivateFile,
    /// A Unix socket at this path, with mode 600. The place must be free, or taken by the socket of a manager that is
    /// dead.
    Unix(PathBuf),
    /// A TCP port. An [`AuthKey`](crate::manager::AuthKey) is necessary.
    Tcp {
        /// The name or address of this machine to listen at. It becomes a part of the manager's [`Address`].
        host: String,
        /// The port, or 0 for any that is free.
        port: u16,
        /// Whether to speak TLS.
        tls: bool,
    },
}

/// A text isn't an [`Address`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is not the address of a manager, such as unix:/path, unix:@name, tcp://host:port or tls://host:port")]
pub struct ParseAddressError {
    text: String,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A name without a file begins with this sign, so a path that does says that it is one.
            Address::Unix(path) if path.as_os_str().as_encoded_bytes().starts_with(b"@") => {
                write!(f, "unix:./{}", path.display())
            }
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Abstract(name) => write!(f, "unix:@{name}"),
            Address::Tcp { host, port, tls } => {
                let scheme = if *tls { "tls" } else { "tcp" };
                if host.contains(':') {
                    write!(f, "{scheme}://[{host}]:{port}")
                } else {
                    write!(f, "{scheme}://{host}:{port}")
                }
            }
        }
    }
}

impl FromStr for Address {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_address(text).ok_or_else(|| ParseAddressError { text: text.to_owned() })
    }
}

fn parse_address(text: &str) -> Option<Address> {
    if let Some(place) = text.strip_prefix("unix:") {
        return match place.strip_prefix('@') {
            _ if place.contains('\0') => None,
            Some("") => None,
            Some(name) => Some(Address::Abstract(name.to_owned())),
            None if place.is_empty() => None,
            None => Some(Address::Unix(place.into())),
        };
    }
    let (tls, place) = match text.strip_prefix("tls://") {
        Some(place) => (true, place),
        None => (false, text.strip_prefix("tcp://")?),
    };
    let (host, port) = place.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']').filter(|host| host.contains(':'))?,
        None => Some(host).filter(|host| !host.contains([':', '[', ']', '/', '@']))?,
    };
    // `parse` would take a sign.
    if host.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Address::Tcp { host: host.to_owned(), port: port.parse().ok()?, tls })
}
