//! The first messages: who the opener is, and whether the two can work together.

use std::io;
use std::time::Duration;

use rustdask_core::cluster::{Answer, Hello, Role, Versions, Welcome};
use rustdask_core::frame::Limits;
use tokio::time::timeout;

use super::{ConnectError, Connection};

const LIMITS: Limits = Limits { header_bytes: 64 << 10, body_bytes: 0 };
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// A scheduler that has much to do answers late.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

impl Connection {
    /// The opener's side.
    pub async fn greet(&mut self, role: Role, versions: Versions) -> Result<Welcome, ConnectError> {
        let peer = self.peer();
        match timeout(ANSWER_LIMIT, self.exchange(Hello { role, versions })).await {
            Ok(Ok(Some(Answer::Welcome(welcome)))) => Ok(welcome),
            Ok(Ok(Some(Answer::Refused(why)))) => Err(ConnectError::refused(&peer, &why)),
            Ok(Ok(None)) => Err(ConnectError::unreachable(&peer, &"it closed the connection")),
            Ok(Err(error)) => Err(ConnectError::unreachable(&peer, &error)),
            Err(_) => Err(ConnectError::unreachable(&peer, &format!("no answer within {ANSWER_LIMIT:?}"))),
        }
    }

    async fn exchange(&mut self, hello: Hello) -> io::Result<Option<Answer>> {
        self.send(&hello, &[]).await?;
        Ok(self.receive(LIMITS).await?.map(|frame| frame.message))
    }

    /// The acceptor's side, which then [sends](Connection::send) an [`Answer`].
    pub async fn hello(&mut self) -> io::Result<Hello> {
        let silent = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no greeting within {HELLO_LIMIT:?}"));
        let frame = timeout(HELLO_LIMIT, self.receive(LIMITS)).await.map_err(silent)??;
        Ok(frame.ok_or(io::ErrorKind::UnexpectedEof)?.message)
    }
}

/// Whether two processes can exchange pickles: what to warn of, or why not.
pub fn check_versions(ours: &Versions, theirs: &Versions) -> Result<Vec<String>, String> {
    if ours.python != theirs.python {
        let [(here, here_minor), (there, there_minor)] = [ours.python, theirs.python];
        return Err(format!(
            "Python is {here}.{here_minor} here and {there}.{there_minor} there: functions that one pickles cannot be run by \
             the other, so use the same Python on both"
        ));
    }
    let warn = |name: &str, here: &str, there: &str| {
        (here != there)
            .then(|| format!("{name} is {here} here and {there} there, so results may differ or not unpickle"))
    };
    let own = warn("rustdask", &ours.rustdask, &theirs.rustdask);
    let both = ours.libraries.iter().filter_map(|(name, here)| {
        let (_, there) = theirs.libraries.iter().find(|(theirs, _)| theirs == name)?;
        warn(name, here, there)
    });
    Ok(own.into_iter().chain(both).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(python: (u8, u8), numpy: &str) -> Versions {
        Versions { rustdask: "0.1.0".into(), python, libraries: vec![("numpy".into(), numpy.into())] }
    }

    #[test]
    fn another_python_is_refused_and_other_libraries_are_warned_of() {
        let ours = versions((3, 12), "2.1.0");
        assert_eq!(check_versions(&ours, &ours), Ok(vec![]));
        let refusal = check_versions(&ours, &versions((3, 11), "2.1.0")).unwrap_err();
        assert!(refusal.contains("3.12 here and 3.11 there"), "{refusal}");
        let warnings = check_versions(&ours, &versions((3, 12), "1.26.0")).unwrap();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("numpy is 2.1.0 here and 1.26.0 there"), "{}", warnings[0]);
        let without = Versions { libraries: vec![], ..ours.clone() };
        assert_eq!(check_versions(&ours, &without), Ok(vec![]));
    }
}
