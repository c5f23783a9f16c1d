//! The handles of the web half: codes, sessions of mini programs, and what ends an authorisation.

use serde_json::{Map, Value};

use crate::{
    AppKind, ControlError, DuplicateCallbacks, EncryptedData, Revocation, Scope, Sim, TokenState,
    WebGrant, sns, unknown,
};

impl Sim {
    /// Issues a code of a user, as if the user had authorised the app; with `snapshot` that of a
    /// virtual account instead, which only [`Scope::UserInfo`] has.
    pub fn issue_code(
        &self,
        appid: &str,
        openid: &str,
        scope: Scope,
        snapshot: bool,
    ) -> Result<String, ControlError> {
        let fits = |kind| sns::may_ask(kind, scope) && (!snapshot || scope == Scope::UserInfo);
        let mut state = self.state();
        state.check_user(appid, openid, fits)?;
        let now = self.now();
        Ok(state.issue_web_code((appid, openid), scope, snapshot, now, 0))
    }

    /// Issues a `js_code` of a user, as a login in a mini program does. It makes a session key, in
    /// the place of the former.
    pub fn issue_js_code(&self, appid: &str, openid: &str) -> Result<String, ControlError> {
        let mut state = self.state();
        state.check_user(appid, openid, |kind| kind == AppKind::MiniProgram)?;
        let now = self.now();
        Ok(state.issue_js_code(appid, openid, now))
    }

    /// What a mini program hands to its server when it reads `data` of a user: encrypted with the
    /// user's session key, with a watermark.
    pub fn encrypt_for(
        &self,
        appid: &str,
        openid: &str,
        data: Map<String, Value>,
    ) -> Result<EncryptedData, ControlError> {
        let mut state = self.state();
        state.check_user(appid, openid, |kind| kind == AppKind::MiniProgram)?;
        let now = self.now();
        let encrypted = state.encrypt_for(appid, openid, data, now);
        encrypted.ok_or_else(|| ControlError::NoSession(openid.to_owned()))
    }

    /// Ends what a user authorised so far: refresh tokens answer 42007, web tokens what
    /// [`Switches::ended_web_token_code`](crate::Switches::ended_web_token_code) says, and codes that
    /// were not used yet 40029. That the codes end too is a guess.
    pub fn revoke_grant(
        &self,
        appid: &str,
        openid: &str,
        why: Revocation,
    ) -> Result<(), ControlError> {
        let mut state = self.state();
        state.check_user(appid, openid, |_| true)?;
        let now = self.now();
        state.grants.revoke(appid, openid, why, now);
        Ok(())
    }

    /// Sets whether, and how, browsers come back twice to an app.
    pub fn set_duplicate_callbacks(
        &self,
        appid: &str,
        twice: Option<DuplicateCallbacks>,
    ) -> Result<(), ControlError> {
        let mut state = self.state();
        let app = state.apps.get_mut(appid).ok_or_else(|| unknown(appid))?;
        app.duplicate_callbacks = twice;
        Ok(())
    }

    /// What `/sns/userinfo` would say to a web token of an app now.
    pub fn web_token_state(&self, appid: &str, token: &str) -> TokenState {
        let state = self.state();
        let found = state.grants.web_token(token).filter(|one| one.subject.appid == appid);
        found.map_or(TokenState::Unknown, |one| one.state(self.now()))
    }

    /// What is left of the code exchanges of a user, or of a virtual account by its openid, oldest
    /// first.
    pub fn grants_of(&self, appid: &str, openid: &str) -> Vec<WebGrant> {
        self.state().grants.of_user(appid, openid, self.now())
    }
}

impl crate::state::State {
    /// Whether the app exists, is of a kind that fits, and knows the user.
    fn check_user(
        &self,
        appid: &str,
        openid: &str,
        fits: impl FnOnce(AppKind) -> bool,
    ) -> Result<(), ControlError> {
        let app = self.apps.get(appid).ok_or_else(|| unknown(appid))?;
        if !fits(app.spec.kind) {
            return Err(ControlError::WrongKind(appid.to_owned()));
        }
        if !app.users.contains_key(openid) {
            return Err(ControlError::UnknownUser(openid.to_owned()));
        }
        Ok(())
    }
}
