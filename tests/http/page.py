"""Drives the page at `/` in headless Chromium: memory, plan, a prune job with its bars, models, a chat.

    python page.py URL SCREENSHOT-FOLDER [CHROMIUM]

The server must serve a base model whose pruning takes a few seconds. Needs Chromium and the package
`websocket-client`. Any error of a script, any refusal of the content security policy and any request that goes
elsewhere is a fault.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request

import websocket


class Browser:
    def __init__(self, chromium):
        self.profile = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0",
             "--remote-allow-origins=*", "--disable-background-networking", "--disable-component-update", "--no-first-run",
             f"--user-data-dir={self.profile.name}", "about:blank"],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )
        for line in self.process.stderr:
            if "DevTools listening on " in line:
                port = line.split("ws://")[1].split("/")[0].rsplit(":", 1)[1]
                break
        pages = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list"))
        page = next(page for page in pages if page["type"] == "page")
        self.socket = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=60)
        self.number, self.faults, self.requests = 0, [], []
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self.note(message)

    def note(self, message):
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.faults.append("exception: " + json.dumps(params["exceptionDetails"])[:300])
        if method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.faults.append("log: " + params["entry"]["text"][:300])
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def run(self, script):
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(script + ": " + json.dumps(result["exceptionDetails"])[:300])
        return result["result"].get("value")

    def wait(self, script, seconds, what):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            value = self.run(script)
            if value:
                return value
            time.sleep(0.1)
        raise AssertionError(f"{what}: not after {seconds} s")

    def visit(self, url):
        answer = self.call("Page.navigate", url=url)
        assert not answer.get("errorText"), answer
        self.wait(f"location.href === {json.dumps(url)} && document.readyState === 'complete'", 60, url)

    def screenshot(self, path):
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        with open(path, "wb") as file:
            file.write(base64.b64decode(shot["data"]))

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)


def main():
    url, folder = sys.argv[1].rstrip("/"), sys.argv[2]
    os.makedirs(folder, exist_ok=True)
    browser = Browser(sys.argv[3] if len(sys.argv) > 3 else "chromium")
    try:
        browser.call("Emulation.setDeviceMetricsOverride", width=412, height=915, deviceScaleFactor=2, mobile=True)
        browser.call("Emulation.setScrollbarsHidden", hidden=True)
        browser.visit(url + "/")
        text = "document.getElementById('%s').textContent"
        browser.wait((text % "state") + ".startsWith('ready')", 60, "the state is ready")
        browser.wait("Number(document.getElementById('bar-used').getAttribute('width')) > 0", 10, "the gauge shows memory")
        for name in ("used", "budget", "available", "total"):
            assert "iB" in browser.run(text % name), name
        assert browser.run(text % "plan").strip() not in ("", "…"), "the plan in words"
        browser.wait("document.querySelectorAll('#models tr').length >= 1", 10, "models are listed")
        wide = browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"the page is {wide} pixels too wide for a phone"
        browser.screenshot(f"{folder}/1-phone.png")

        # A chat, streamed.
        browser.call("Emulation.setDeviceMetricsOverride", width=1100, height=900, deviceScaleFactor=1, mobile=False)
        browser.run("document.getElementById('question').value = 'Name a fruit.'; document.getElementById('ask').click()")
        browser.wait("!document.getElementById('ask').disabled && document.getElementById('speed').textContent.includes('tokens/s')", 120, "an answer")
        answers = browser.run("[...document.querySelectorAll('#log .turn')].map((turn) => turn.className + '|' + turn.textContent)")
        assert answers[0] == "turn user|Name a fruit." and answers[1].startswith("turn assistant|"), answers
        browser.screenshot(f"{folder}/2-chat.png")

        # A prune, with its bars.
        budget = browser.run("fetch('/api/v1/status').then((r) => r.json()).then((s) => s.model.plan ? s.model.plan.footprint.total_bytes : 0)")
        assert budget > 0, "the served model has a plan"
        while not browser.run("fetch('/api/v1/plan', { method: 'POST', headers: { 'content-type': 'application/json' },"
                              f" body: '{{\"memory_budget\": {budget}}}' }}).then((r) => r.json()).then((plan) => plan.ratio)"):
            # Fewer bits come before fewer neurons.
            budget = int(budget * 0.97)
        browser.run(f"document.getElementById('prune-budget').value = '{budget}'; document.getElementById('plan-button').click()")
        browser.wait("document.getElementById('plan-answer').textContent.length > 10", 30, "the answer to a plan")
        browser.run("document.getElementById('prune-button').click()")
        browser.wait("document.querySelectorAll('#layers progress').length > 1", 120, "bars of layers")
        seen = browser.wait("[...document.querySelectorAll('#layers progress')].some((bar) => bar.value === 1)", 300, "a layer is done")
        assert seen
        browser.screenshot(f"{folder}/3-prune.png")
        state = browser.wait("['succeeded', 'failed', 'cancelled'].find((state) => document.getElementById('job').dataset.state === state)", 900, "the job ends")
        assert state == "succeeded", browser.run(text % "job-text")
        browser.wait("[...document.querySelectorAll('#models tr')].length >= 2", 30, "the pruned model is listed")
        browser.wait((text % "state") + ".startsWith('ready')", 10, "the model is served")
        browser.screenshot(f"{folder}/4-done.png")
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        browser.screenshot(f"{folder}/5-dark.png")
        browser.call("Emulation.setEmulatedMedia", features=[])
        browser.call("Emulation.setDeviceMetricsOverride", width=360, height=780, deviceScaleFactor=2, mobile=True)
        wide = browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"the page is {wide} pixels too wide for a small phone"
        browser.screenshot(f"{folder}/7-phone-done.png")
        browser.call("Emulation.setDeviceMetricsOverride", width=1100, height=900, deviceScaleFactor=1, mobile=False)

        # What a screen reader gets.
        tree = browser.call("Accessibility.getFullAXTree")["nodes"]
        unnamed = [node["role"]["value"] for node in tree if not node.get("ignored")
                   and node["role"]["value"] in ("button", "textbox", "link", "meter", "progressbar")
                   and not node.get("name", {}).get("value")]
        assert not unnamed, f"without a name: {unnamed}"

        browser.visit(url + "/docs")
        browser.wait("document.querySelectorAll('#operations section').length > 10", 20, "the documentation")
        browser.screenshot(f"{folder}/6-docs.png")
        elsewhere = [request for request in browser.requests if not request.startswith((url + "/", "data:", "about:"))]
        assert not elsewhere, elsewhere
        assert not browser.faults, browser.faults
    finally:
        browser.close()
    print(f"the page holds; screenshots are in {folder}")


if __name__ == "__main__":
    main()
