//! Mini programs: sessions and what a mini program encrypts with their keys.

use std::collections::{BTreeMap, HashMap};

use aws_lc_rs::{
    cipher::{AES_128, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey},
    digest::{SHA1_FOR_LEGACY_USE_ONLY, digest},
    error::Unspecified,
    iv::FixedLength,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use clock::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{answer::Failure, exchange::Call, oauth::Purpose, rng::Rng, state::State};

/// The sessions of a mini program's users.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    /// The session key of a user, since the login that made it.
    keys: BTreeMap<String, [u8; 16]>,
    minute: i64,
    /// How often a user's codes were brought in this minute.
    brought: HashMap<String, u64>,
}

impl Sessions {
    /// A user logs in: the session key is made, or replaced if `replace`.
    fn log_in(&mut self, openid: &str, replace: bool, rng: &mut Rng) {
        if replace || !self.keys.contains_key(openid) {
            self.keys.insert(openid.to_owned(), rng.bytes16());
        }
    }

    /// Counts a code of a user that is brought, and says whether it is one too many.
    fn bring(&mut self, openid: &str, now: Timestamp) -> bool {
        const A_MINUTE: u64 = 100;
        let minute = now.as_secs().div_euclid(60);
        if minute != self.minute {
            self.minute = minute;
            self.brought.clear();
        }
        let brought = self.brought.entry(openid.to_owned()).or_default();
        *brought += 1;
        *brought > A_MINUTE
    }
}

/// What a mini program reads of its user, as it would hand it to its server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptedData {
    /// The data with its watermark, encrypted with the session key, in base64.
    pub encrypted_data: String,
    /// The initialisation vector, in base64.
    pub iv: String,
    /// The data without watermark, as JSON.
    pub raw_data: String,
    /// SHA-1 of `raw_data` and session key, in hexadecimal digits.
    pub signature: String,
}

impl State {
    /// Issues a `js_code` of a user as a login in the mini program does.
    pub(crate) fn issue_js_code(&mut self, appid: &str, openid: &str, now: Timestamp) -> String {
        if let Some(app) = self.apps.get_mut(appid) {
            let replace = self.switches.login_replaces_session_key;
            app.sessions.log_in(openid, replace, &mut self.secrets);
        }
        let subject = self.grants.subject(appid, openid, false);
        let life = self.switches.short_code_life();
        self.grants.issue_code(subject, Purpose::Mini, (now, life), 0)
    }

    pub(crate) fn jscode2session(&mut self, call: &Call, now: Timestamp) -> Result<Value, Failure> {
        let (appid, code) = self.check_code_claim(call, "js_code")?;
        if let Some(subject) = self.grants.subject_of_code(code)
            && subject.appid == appid
            && let Some(app) = self.apps.get_mut(appid)
            && app.sessions.bring(&subject.openid, now)
        {
            return Err(Failure::new(45011));
        }
        let wanted = |purpose| (purpose == Purpose::Mini).then_some(());
        let (subject, ()) = self.grants.redeem(code, appid, wanted, (now, &self.switches))?;
        let sessions = self.apps.get(appid).map(|app| &app.sessions.keys);
        let key = sessions.and_then(|keys| keys.get(&subject.openid));
        let key = key.ok_or_else(|| Failure::new(40029))?;
        let mut answer = json!({ "session_key": STANDARD.encode(key), "openid": subject.openid });
        if let Some(unionid) = self.unionid(&subject) {
            answer["unionid"] = unionid.into();
        }
        Ok(answer)
    }

    /// Encrypts data for a user who has logged in; `None` for one who has not.
    pub(crate) fn encrypt_for(
        &mut self,
        appid: &str,
        openid: &str,
        data: Map<String, Value>,
        now: Timestamp,
    ) -> Option<EncryptedData> {
        let key = self.apps.get(appid)?.sessions.keys.get(openid)?;
        encrypt(key, &self.secrets.bytes16(), appid, data, now).ok()
    }
}

fn encrypt(
    key: &[u8; 16],
    iv: &[u8; 16],
    appid: &str,
    data: Map<String, Value>,
    now: Timestamp,
) -> Result<EncryptedData, Unspecified> {
    let raw_data = Value::Object(data.clone()).to_string();
    let mut marked = data;
    let watermark = json!({ "timestamp": now.as_secs(), "appid": appid });
    marked.insert("watermark".to_owned(), watermark);
    let mut bytes = Value::Object(marked).to_string().into_bytes();
    let cipher = PaddedBlockEncryptingKey::cbc_pkcs7(UnboundCipherKey::new(&AES_128, key)?)?;
    cipher.less_safe_encrypt(&mut bytes, EncryptionContext::Iv128(FixedLength::from(iv)))?;
    let signature = sign(&raw_data, &STANDARD.encode(key));
    Ok(EncryptedData {
        encrypted_data: STANDARD.encode(bytes),
        iv: STANDARD.encode(iv),
        raw_data,
        signature,
    })
}

fn sign(raw_data: &str, session_key: &str) -> String {
    let sum = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{raw_data}{session_key}").as_bytes());
    sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_the_documents() {
        let raw_data = r#"{"nickName":"Band","gender":1,"language":"zh_CN","city":"Guangzhou","province":"Guangdong","country":"CN","avatarUrl":"http://wx.qlogo.cn/mmopen/vi_32/1vZvI39NWFQ9XM4LtQpFrQJ1xlgZxx3w7bQxKARol6503Iuswjjn6nIGBiaycAjAtpujxyzYsrztuuICqIM5ibXQ/0"}"#;
        let signature = sign(raw_data, "HyVFkGl5F5OQWJZZaNzBBg==");
        assert_eq!(signature, "75e81ceda165f4ffa64f4068af58c64b8f54b88c");
    }
}
