// Looks at the pages that a peer itself shows, one step for each line on standard input:
//
//     {"do": "open", "page": NAME, "url": URL, "width": W, "dark": BOOL, "script": BOOL,
//      "with": NAME} a tab of its own, or one more beside that of another name
//     {"do": "sees", "page": NAME, "text": TEXT, "exact": BOOL} waits until the page
//      shows it, within another text and in other cases unless that is to be exact
//     {"do": "cells", "page": NAME, "table": ID} the text of each cell, by row
//     {"do": "fill", "page": NAME, "label": LABEL, "text": TEXT}
//     {"do": "press", "page": NAME, "key": KEY, "times": N} and what has the focus after each
//     {"do": "click", "page": NAME, "label": LABEL} a button
//     {"do": "focus", "page": NAME, "label": LABEL}
//     {"do": "hide", "page": NAME, "hidden": BOOL} another tab comes before it, or it before them
//     {"do": "shot", "page": NAME, "file": PATH}
//     {"do": "state", "page": NAME} errors, requests to elsewhere, loads, width, questions, title,
//                                   the label of what has the focus
//
// Each step ends with one line of JSON on standard output.

const { chromium } = require('playwright-core');
const readline = require('node:readline');

const pages = new Map();

const steps = {
    async open(browser, { page: name, url, width = 1280, dark = false, script = true, with: beside }) {
        const context = pages.get(beside)?.page.context() ?? await browser.newContext({
            viewport: { width, height: 900 },
            colorScheme: dark ? 'dark' : 'light',
            javaScriptEnabled: script,
            isMobile: width < 600,
            hasTouch: width < 600,
            deviceScaleFactor: 2,
        });
        const page = await context.newPage();
        page.setDefaultTimeout(30_000);
        const state = { page, errors: [], elsewhere: [], loads: [], questions: [] };
        const own = new URL(url).origin;
        page.on('console', (message) => {
            // The browser itself says so of each answer with an error's status, which the page
            // is made for.
            const expected = message.text().startsWith('Failed to load resource');
            if (message.type() === 'error' && !expected) state.errors.push(message.text());
        });
        page.on('dialog', async (dialog) => {
            state.questions.push(dialog.message());
            await dialog.dismiss();
        });
        page.on('pageerror', (error) => state.errors.push(`${error}`));
        page.on('request', (request) => {
            const to = request.url();
            if (!to.startsWith(own) && !to.startsWith('data:')) state.elsewhere.push(to);
        });
        page.on('response', (response) => {
            if (response.request().isNavigationRequest()) state.loads.push(response.status());
        });
        pages.set(name, state);
        const response = await page.goto(url, { waitUntil: 'domcontentloaded' });
        return { status: response.status() };
    },

    async sees(_, { page: name, text, exact = false }) {
        await pages.get(name).page.getByText(text, { exact }).first().waitFor();
        return {};
    },

    async cells(_, { page: name, table }) {
        const rows = pages.get(name).page.locator(`#${table} tbody tr`);
        return {
            rows: await rows.evaluateAll((rows) => rows.map((row) => [...row.cells].map((cell) => cell.innerText.replace(/\s+/g, ' ').trim()))),
        };
    },

    async fill(_, { page: name, label, text }) {
        await pages.get(name).page.getByLabel(label, { exact: true }).fill(text);
        return {};
    },

    async press(_, { page: name, key, times = 1 }) {
        const { page } = pages.get(name);
        const focused = [];
        for (let time = 0; time < times; time += 1) {
            await page.keyboard.press(key);
            focused.push(await page.evaluate(() => {
                const element = document.activeElement;
                const outlined = getComputedStyle(element).outlineStyle !== 'none';
                return `${element.id || element.tagName.toLowerCase()}${outlined ? '' : ' (no outline)'}`;
            }));
        }
        return { focused };
    },

    async click(_, { page: name, label }) {
        await pages.get(name).page.getByLabel(label, { exact: true }).click();
        return {};
    },

    async focus(_, { page: name, label }) {
        await pages.get(name).page.getByLabel(label, { exact: true }).focus();
        return {};
    },

    // Without a screen all tabs count as seen, whichever is in front.
    async hide(_, { page: name, hidden }) {
        await pages.get(name).page.evaluate((hidden) => {
            Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
            document.dispatchEvent(new Event('visibilitychange'));
        }, hidden);
        return {};
    },

    async shot(_, { page: name, file }) {
        await pages.get(name).page.screenshot({ path: file, fullPage: true });
        return {};
    },

    async state(_, { page: name }) {
        const { page, errors, elsewhere, loads, questions } = pages.get(name);
        const focused = await page.evaluate(() => document.activeElement.getAttribute('aria-label'));
        const sideways = await page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth);
        return { errors, elsewhere, loads, sideways, questions, focused, title: await page.title(), text: await page.locator('body').innerText() };
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
