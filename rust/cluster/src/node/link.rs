//! The node's connection to its scheduler: made, and made again.

use std::time::{Duration, Instant};

use rustdask_core::cluster::{Role, Versions, Welcome};

use super::options::{NodeOptions, Notice};
use crate::transport::{check_versions, connect, ConnectError, Connection};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Try until it succeeds, the scheduler does not want this node, or the node has been without one for too long.
pub(crate) async fn find_scheduler(options: &NodeOptions) -> Result<(Connection, Welcome), ConnectError> {
    let since = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let why = match join(options).await {
            Ok(joined) => return Ok(joined),
            Err(ConnectError::Unreachable(why)) => why,
            Err(refused) => return Err(refused),
        };
        let left = options.death_timeout.map(|limit| limit.saturating_sub(since.elapsed()));
        if let Some(limit) = options.death_timeout.filter(|_| left == Some(Duration::ZERO)) {
            let given_up = format!("{why}; gave up after {limit:?} (--death-timeout)");
            return Err(ConnectError::Unreachable(given_up));
        }
        (options.notice)(Notice::Lost { why: &why });
        tokio::time::sleep(left.map_or(pause, |left| pause.min(left))).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

async fn join(options: &NodeOptions) -> Result<(Connection, Welcome), ConnectError> {
    let mut connection = connect(&options.scheduler, &options.security, CONNECT_LIMIT).await?;
    let welcome = connection.greet(Role::Node, options.versions.clone()).await?;
    warn(options, &welcome.versions);
    Ok((connection, welcome))
}

/// The scheduler refuses those that cannot work with the others; here, it is for people to know.
fn warn(options: &NodeOptions, theirs: &Versions) {
    for warning in check_versions(&options.versions, theirs).unwrap_or_default() {
        (options.notice)(Notice::Warning(&warning));
    }
}
