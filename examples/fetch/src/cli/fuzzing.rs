//! What the fuzz target of the config file calls: a text that nobody should write. It checks that what is wrong names
//! the file and repeats no password, and that there is a flag for what isn't.

use super::{command, config};

/// The config file, also with a password before and behind what is given.
pub fn config(data: &[u8]) {
    const PASSWORD: &str = "hunter2";
    let Ok(text) = std::str::from_utf8(data) else { return };
    if text.contains(PASSWORD) {
        return;
    }
    let command = command();
    let user = format!("user = \"name:{PASSWORD}\"");
    for text in [text, &format!("{user}\n{text}"), &format!("{text}\n{user}")] {
        match config::parse(&command, text, "FILE") {
            Ok(layer) => {
                assert!(layer.keys().all(|name| command.get_arguments().any(|arg| arg.get_long() == Some(name))));
            }
            Err(why) => assert!(why.starts_with("FILE") && !why.contains(PASSWORD), "{why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_wrong_repeats_no_password() {
        for text in ["", "user = \"a:b\"", "user =", "[", "rate = [", "rate = \"\"\"", "no-flag = 1", "rate = \"fast\""]
        {
            super::config(text.as_bytes());
        }
    }
}
