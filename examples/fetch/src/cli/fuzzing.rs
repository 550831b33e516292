//! What the fuzz target of the config file calls: a text that nobody should write. It checks that what is wrong names the
//! file, and that there is a flag for what isn't.

use super::{command, config};

/// The config file.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let command = command();
    match config::parse(&command, text, "FILE") {
        Ok(layer) => assert!(layer.keys().all(|name| command.get_arguments().any(|arg| arg.get_long() == Some(name)))),
        Err(why) => assert!(why.starts_with("FILE"), "{why}"),
    }
}
