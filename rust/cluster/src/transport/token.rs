//! The secret that the processes of a cluster share.

use std::fmt::{self, Write};
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

use super::private;

/// A shorter token could be guessed from a handshake that somebody has overheard.
const MIN_CHARACTERS: usize = 16;

/// It shows itself only to who calls [`Token::reveal`].
#[derive(Clone)]
pub struct Token {
    text: Arc<str>,
    key: hmac::Key,
}

impl Token {
    /// 256 bits from the kernel.
    pub fn random() -> io::Result<Self> {
        let text = random::<32>()?.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("strings take all that is written");
            text
        });
        Ok(text.parse().expect("it is long enough"))
    }

    /// From a file that has it and nothing else, but for space around it.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| private::name(path, error))?;
        text.parse().map_err(|why: String| private::name(path, io::Error::new(io::ErrorKind::InvalidData, why)))
    }

    /// Into a new file that only this user may read.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        private::write_new(path, format!("{}\n", self.text).as_bytes())
    }

    pub fn reveal(&self) -> &str {
        &self.text
    }

    pub(crate) fn key(&self) -> &hmac::Key {
        &self.key
    }
}

/// Random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("the kernel gave no random numbers"))?;
    Ok(bytes)
}

impl FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.chars().count() < MIN_CHARACTERS {
            return Err(format!("a token has at least {MIN_CHARACTERS} characters; `openssl rand -hex 32` makes one"));
        }
        Ok(Self { text: text.into(), key: hmac::Key::new(hmac::HMAC_SHA256, text.as_bytes()) })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn tokens_go_through_files_that_only_their_owner_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let token = Token::random().unwrap();
        token.write(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Token::read(&path).unwrap().reveal(), token.reveal());
        assert_ne!(Token::random().unwrap().reveal(), token.reveal());
        let error = token.write(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }

    #[test]
    fn tokens_do_not_show_themselves() {
        let token = Token::random().unwrap();
        assert_eq!(format!("{token:?}"), "Token(..)");
    }

    #[test]
    fn short_tokens_are_refused() {
        assert!(" fifteen-charact ".parse::<Token>().unwrap_err().contains("at least 16 characters"));
    }
}
