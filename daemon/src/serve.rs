//! Holds the place of the process on the host network: answers the control socket, reaches nobody yet.

use std::sync::Arc;

use clusternet::api::{Progress, Reply};

use crate::{
    control::{self, Desk, Keeper, Question},
    runtime,
    start::{Files, Inherited},
};

pub(crate) fn start() -> anyhow::Result<()> {
    let inherited = Inherited::take()?;
    crate::logging::start(None);
    let path = inherited.about.start.runtime.clone();
    let done = run(inherited);
    if done.is_ok() {
        runtime::remove(&path);
    }
    done
}

fn run(inherited: Inherited) -> anyhow::Result<()> {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let files = Files::parse(&inherited.about.start, clusternet::sys::clock::now().wall)?;
    rt.block_on(async {
        let keeper = Keeper::new(inherited.keeper)?;
        let (send, mut questions) = tokio::sync::mpsc::channel(16);
        let desk = Desk {
            about: Arc::new(inherited.about),
            network: files.master.network.name.clone(),
            network_id: files.master.network.id(),
            namespaces: inherited.namespaces,
            keeper: keeper.clone(),
            questions: send,
        };
        keeper.report(Progress::Listening { listen: "udp 1".into(), cached: false });
        tokio::spawn(async move {
            while let Some(q) = questions.recv().await {
                if let Question::Ask { answer, .. } = q {
                    let _ = answer.send(Reply::Error { message: "stub".into() });
                }
            }
        });
        control::run(desk, inherited.control).await
    })
}
