//! wechat-mp-sdk, by its base URL: before and after the app's token ends, and when its key is
//! revoked.

use std::{process::Command, time::Duration};

use serde_json::Value;
use wechat_mp_sdk::{
    WechatError, WechatMp,
    api::{
        customer_service::{Message, TextMessage},
        media::MediaType,
    },
    types::{AppId, AppSecret},
};

const TEXT: &str = "你好，世界 🌏";

/// What `world.json` says.
struct World(Value);

impl World {
    fn text(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or_else(|| panic!("world.json has no `{name}`"))
    }

    /// Asks the control port of the simulator.
    fn control(&self, path: &str, body: Option<&str>) -> Value {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail", &format!("{}{path}", self.text("sim_control"))]);
        if let Some(body) = body {
            curl.args(["--data", body]);
        }
        let output = curl.output().expect("curl runs");
        assert!(output.status.success(), "control port: {path}");
        serde_json::from_slice(&output.stdout).expect("the control port answers JSON")
    }

    /// Runs a command of xinfu.
    fn xinfu(&self, arguments: &[&str]) {
        let command: Vec<&str> =
            self.0["command"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let status = Command::new(command[0]).args(&command[1..]).args(arguments).output().unwrap();
        assert!(status.status.success(), "xinfu {arguments:?}");
    }

    fn sdk(&self, appid: &str) -> WechatMp {
        WechatMp::builder()
            .appid(AppId::new(self.text(appid)).unwrap())
            .secret(AppSecret::new(self.text("key")).unwrap())
            .base_url(self.text("api"))
            .timeout(Duration::from_secs(20))
            .build()
            .expect("the SDK takes its settings")
    }
}

/// Every kind of call once.
async fn steps(world: &World, sdk: &WechatMp, appid: &str) {
    let picture: Vec<u8> = (0..180_000u32).map(|at| (at % 251) as u8).collect();
    assert!(sdk.get_access_token().await.unwrap().starts_with("xt_"), "the SDK holds a pass");
    assert!(!sdk.get_api_domain_ip().await.unwrap().ip_list.is_empty());
    let media = sdk.upload_temp_media(MediaType::Image, "picture.png", &picture).await.unwrap();
    assert!(sdk.get_temp_media(&media.media_id).await.unwrap() == picture, "media");
    let text = Message::Text { text: TextMessage::new(TEXT) };
    sdk.send_customer_service_message(world.text("openid"), text).await.unwrap();
    let sent = world.control(&format!("/sim/messages?appid={}", world.text(appid)), None);
    let last = sent["messages"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last["text"]["content"], TEXT, "Chinese text of the message");
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let path = std::env::args().nth(1).expect("the name of world.json");
    let text = std::fs::read_to_string(path).expect("world.json can be read");
    let world = World(serde_json::from_str(&text).expect("world.json is JSON"));

    let sdk = world.sdk("appid");
    steps(&world, &sdk, "appid").await;
    for _ in 0..3 {
        let path = format!("/sim/apps/{}/foreign-refresh", world.text("appid"));
        world.control(&path, Some(r#"{"issuer":"stable","kill":true}"#));
        steps(&world, &sdk, "appid").await;
    }
    let classic = world.sdk("classic_appid");
    steps(&world, &classic, "classic_appid").await;
    world.xinfu(&["token", "refresh", world.text("classic_appid")]);
    steps(&world, &classic, "classic_appid").await;

    world.xinfu(&["key", "revoke", world.text("key_name")]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let refused = tokio::time::timeout(Duration::from_secs(10), sdk.get_api_domain_ip()).await;
    let refused = refused.expect("the SDK gives up").expect_err("a revoked key goes on working");
    assert!(matches!(refused, WechatError::Api { code: 40001 | 40125, .. }), "{refused}");
    println!("wechat-mp-sdk: all calls, three foreign refreshes, a rotation, a revocation");
}
