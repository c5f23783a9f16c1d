//! Followers, read with the global token.

use std::sync::Arc;

use wechat::{Follower, FollowerPage, Lang, OpenId};

use crate::{AppEntry, Broker, error::CallError};

/// WeChat takes so many openids in one call.
const BATCH: usize = 100;

impl Broker {
    /// The record of one follower; for a user who does not follow, one that says so.
    pub async fn user(
        &self,
        entry: &Arc<AppEntry>,
        openid: &OpenId,
        lang: Option<Lang>,
    ) -> Result<Follower, CallError> {
        let client = &self.0.wechat;
        self.with_token(entry, |token| async move { client.user_info(&token, openid, lang).await })
            .await
    }

    /// The records of any number of users, in the order asked, by as few calls as WeChat allows.
    pub async fn users(
        &self,
        entry: &Arc<AppEntry>,
        openids: &[OpenId],
        lang: Option<Lang>,
    ) -> Result<Vec<Follower>, CallError> {
        let client = &self.0.wechat;
        let mut all = Vec::with_capacity(openids.len());
        for some in openids.chunks(BATCH) {
            let found = self
                .with_token(entry, |token| async move {
                    client.user_info_batch(&token, some, lang).await
                })
                .await?;
            all.extend(found);
        }
        Ok(all)
    }

    /// A page of follower openids, the first or the one after `next`.
    pub async fn user_page(
        &self,
        entry: &Arc<AppEntry>,
        next: Option<&OpenId>,
    ) -> Result<FollowerPage, CallError> {
        let client = &self.0.wechat;
        self.with_token(entry, |token| async move { client.users(&token, next).await }).await
    }
}
