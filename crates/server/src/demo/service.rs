//! One of the services that `demo --once` runs, as a process of its own: it calls `user/info` once
//! for each line that it reads, with a token of its own or with that of xinfu.

use std::io;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::client::Client;
use crate::cli::{Console, Failure};

/// What a service is told in its first line. Over a pipe, since secrets are no arguments.
#[derive(Serialize, Deserialize)]
pub(crate) struct Task {
    /// WeChat.
    pub(crate) wechat: String,
    /// Whom to ask about.
    pub(crate) openid: String,
    /// Where tokens come from.
    pub(crate) tokens: Tokens,
}

/// Where a service gets its tokens.
#[derive(Serialize, Deserialize)]
pub(crate) enum Tokens {
    /// From WeChat itself, kept until they run out: the naive way.
    Own {
        /// The app.
        appid: String,
        /// Its AppSecret, which every such service has to have.
        secret: String,
    },
    /// From xinfu, before each call.
    Xinfu {
        /// The URL of the token.
        url: String,
        /// The client key.
        key: String,
    },
}

/// Calls for each line, which says what time it is, and answers with a line each.
pub(crate) async fn run(console: &mut Console) -> Result<(), Failure> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let first = lines.next_line().await?.unwrap_or_default();
    let task: Task = serde_json::from_str(&first)
        .map_err(|err| Failure::usage(format!("the first line is no task: {err}")))?;
    let mut service = Service { client: Client::new(), task, kept: None };
    while let Some(line) = lines.next_line().await? {
        let now = line.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let answer = match service.call(now).await? {
            0 => "ok".to_owned(),
            errcode => format!("failed {errcode}"),
        };
        console.print(&answer)?;
    }
    Ok(())
}

struct Service {
    client: Client,
    task: Task,
    /// The token that is kept, and when it runs out.
    kept: Option<(String, i64)>,
}

impl Service {
    /// Calls WeChat once and answers the errcode.
    async fn call(&mut self, now: i64) -> Result<i64, Failure> {
        let token = self.token(now).await?;
        let Task { wechat, openid, .. } = &self.task;
        let url = format!("{wechat}/cgi-bin/user/info?access_token={token}&openid={openid}");
        let errcode = self.client.get(&url, None).await?.number("errcode");
        if errcode != 0 {
            // As most do: fetch another one, the next time.
            self.kept = None;
        }
        Ok(errcode)
    }

    async fn token(&mut self, now: i64) -> Result<String, Failure> {
        match &self.task.tokens {
            Tokens::Xinfu { url, key } => {
                Ok(self.client.get(url, Some(key)).await?.text("access_token").to_owned())
            }
            Tokens::Own { appid, secret } => {
                if let Some((token, _)) = self.kept.as_ref().filter(|(_, end)| *end > now) {
                    return Ok(token.clone());
                }
                let url = format!(
                    "{}/cgi-bin/token?grant_type=client_credential&appid={appid}&secret={secret}",
                    self.task.wechat
                );
                let answer = self.client.get(&url, None).await?;
                let token = answer.text("access_token").to_owned();
                self.kept = Some((token.clone(), now + answer.number("expires_in")));
                Ok(token)
            }
        }
    }
}
