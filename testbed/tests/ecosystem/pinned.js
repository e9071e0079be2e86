// Drives apps in a real browser, one step for each line on standard input:
//
//     {"do": "open", "page": NAME, "url": URL}   in a browser context of its own, with no cookies
//     {"do": "notebook", "page": NAME}           opens a notebook from JupyterLab's launcher
//     {"do": "cell", "page": NAME, "code": CODE} types it into the last cell, runs it
//     {"do": "file", "page": NAME, "path": PATH, "text": TEXT} saves and reads it, as JupyterLab does
//     {"do": "term", "page": NAME, "term": N}    enters a term into the example of Streamlit
//     {"do": "reload", "page": NAME}
//
// Each step ends with one line of JSON on standard output.

const { chromium } = require('playwright-core');
const readline = require('node:readline');

const pages = new Map();

/** What is known of a page: who answered its document and how soon, and its WebSockets. */
function told(state, response) {
    return {
        waited_ms: response.request().timing().responseStart,
        status: response.status(),
        peer: response.headers()['warmhop-peer'],
        sockets: state.opened,
        closed: state.closed,
    };
}

const steps = {
    async open(browser, { page: name, url }) {
        const context = await browser.newContext();
        const page = await context.newPage();
        page.setDefaultTimeout(60_000);
        const state = { page, opened: 0, closed: 0, received: 0 };
        page.on('websocket', (socket) => {
            state.opened += 1;
            socket.on('framereceived', () => { state.received += 1; });
            socket.on('close', () => { state.closed += 1; });
        });
        pages.set(name, state);
        const response = await page.goto(url, { waitUntil: 'domcontentloaded' });
        return told(state, response);
    },

    async reload(_, { page: name }) {
        const state = pages.get(name);
        const response = await state.page.reload({ waitUntil: 'domcontentloaded' });
        return told(state, response);
    },

    async notebook(_, { page: name }) {
        const { page } = pages.get(name);
        await page.locator('.jp-LauncherCard[data-category="Notebook"]').first().click();
        await page.locator('.jp-NotebookPanel:visible .jp-CodeCell .cm-content').first().waitFor();
        // JupyterLab forgets a cell that is run before the notebook has its kernel.
        await page.getByText(/\| Idle$/).waitFor();
        return {};
    },

    async cell(_, { page: name, code }) {
        const state = pages.get(name);
        const panel = state.page.locator('.jp-NotebookPanel:visible');
        const cells = panel.locator('.jp-CodeCell');
        const cell = cells.nth(await cells.count() - 1);
        await cell.locator('.cm-content').click();
        await state.page.keyboard.type(code);
        await state.page.keyboard.press('Shift+Enter');
        const output = cell.locator('.jp-OutputArea-executeResult .jp-OutputArea-output');
        const text = (await output.first().innerText()).trim();
        return { text, sockets: state.opened, closed: state.closed, received: state.received };
    },

    async file(_, { page: name, path, text }) {
        return await pages.get(name).page.evaluate(async ({ path, text }) => {
            const url = `/api/contents/${encodeURIComponent(path)}`;
            // What a page of JupyterLab sends with whatever it changes.
            const token = document.cookie.match(/_xsrf=([^;]*)/)?.[1] ?? '';
            const saved = await fetch(url, {
                method: 'PUT',
                headers: { 'Content-Type': 'application/json', 'X-XSRFToken': token },
                body: JSON.stringify({ type: 'file', format: 'text', content: text }),
            });
            const found = await (await fetch(`${url}?content=1`)).json();
            return { status: saved.status, path: found.path, text: found.content };
        }, { path, text });
    },

    async term(_, { page: name, term }) {
        const state = pages.get(name);
        const input = state.page.getByLabel('Term', { exact: true });
        await input.fill(String(term));
        const before = await state.page.getByText(/terms, sum/).innerText();
        await input.press('Enter');
        const line = state.page.getByText(/terms, sum/).filter({ hasNotText: before });
        const text = await line.innerText();
        await state.page.getByText(/told\.$/).waitFor();
        return { text, sockets: state.opened, closed: state.closed, received: state.received };
    },
};

(async () => {
    const browser = await chromium.launch({
        executablePath: process.env.CHROMIUM,
        args: process.env.CHROMIUM_ARGS.split(' '),
    });
    for await (const line of readline.createInterface({ input: process.stdin })) {
        const step = JSON.parse(line);
        let answer;
        try {
            answer = await steps[step.do](browser, step);
        } catch (error) {
            const page = pages.get(step.page)?.page;
            const text = await page?.locator('body').innerText({ timeout: 1000 }).catch(() => '');
            answer = { error: `${error}`, text };
        }
        console.log(JSON.stringify(answer));
    }
    await browser.close();
})();
