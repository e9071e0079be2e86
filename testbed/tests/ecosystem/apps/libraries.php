<?php
// What libraries of PHP keep in Redis, asked at one endpoint after the other: as libraries.py, whose
// lines it prints.
error_reporting(E_ALL & ~E_DEPRECATED);
[$a, $b, $c] = array_map('intval', explode(',', getenv('REDIS_PORTS')));
$shared = getenv('PHP_SHARED');
spl_autoload_register(function ($class) use ($shared) {
    $path = str_replace('\\', '/', $class) . '.php';
    // One namespace of several packages, each with a folder of its own.
    $paths = [$path];
    foreach (['Collections', 'Macroable'] as $package) {
        $paths[] = str_replace('Illuminate/Support/', "Illuminate/$package/", $path);
    }
    foreach ($paths as $path) {
        if (is_file("$shared/$path")) {
            require "$shared/$path";
            return;
        }
    }
});
foreach (['Collections', 'Support'] as $part) {
    $file = "$shared/Illuminate/$part/helpers.php";
    if (is_file($file)) {
        require $file;
    }
}

function client(int $port): Redis
{
    $it = new Redis();
    $it->connect('127.0.0.1', $port, 20);
    return $it;
}

/** A session held open, and what of it is seen elsewhere meanwhile. */
function session_at(int $port, string $id, callable $during)
{
    ini_set('session.save_path', "tcp://127.0.0.1:$port?timeout=20");
    session_id($id);
    session_start();
    $_SESSION['n'] = ($_SESSION['n'] ?? 0) + 1;
    $seen = $during();
    session_write_close();
    return [$seen, $_SESSION['n']];
}

function phpredis_session_locking($a, $b, $c)
{
    ini_set('session.save_handler', 'redis');
    ini_set('redis.session.locking_enabled', '1');
    ini_set('redis.session.lock_expire', '60');
    $locked = fn ($port) => fn () => client($port)->exists('PHPREDIS_SESSION:sid_LOCK');
    yield 'locked while open' => session_at($a, 'sid', $locked($b));
    yield 'locked when closed' => client($b)->exists('PHPREDIS_SESSION:sid_LOCK');
    yield null;
    yield 'locked while open' => session_at($b, 'sid', $locked($c));
    yield 'written' => session_at($c, 'sid', $locked($b));
    yield 'locked when closed' => client($b)->exists('PHPREDIS_SESSION:sid_LOCK');
}

function laravel(int $port): Illuminate\Cache\Repository
{
    $config = ['default' => ['host' => '127.0.0.1', 'port' => $port, 'database' => 0]];
    $redis = new Illuminate\Redis\RedisManager(null, 'phpredis', $config);
    return new Illuminate\Cache\Repository(new Illuminate\Cache\RedisStore($redis, 'laravel:'));
}

function laravel_cache($a, $b, $c)
{
    yield 'put' => laravel($a)->put('k', ['a' => 1], 600);
    yield 'got' => laravel($b)->get('k');
    yield 'added' => [laravel($a)->add('n', 1, 600), laravel($b)->add('n', 1, 600)];
    laravel($a)->tags(['people', 'artists'])->put('ada', 'x', 600);
    yield 'by tag' => laravel($b)->tags(['people', 'artists'])->get('ada');
    yield null;
    yield 'got' => laravel($c)->get('k');
    yield 'incremented' => [laravel($b)->increment('n'), laravel($c)->increment('n', 4)];
    yield 'many' => laravel($b)->many(['k', 'none']);
    laravel($c)->tags('people')->flush();
    yield 'by tag' => laravel($b)->tags(['people', 'artists'])->get('ada');
    yield 'forgotten' => laravel($c)->forget('k');
}

function laravel_lock($a, $b, $c)
{
    $one = laravel($a)->lock('job', 60);
    yield 'acquired' => $one->get();
    yield 'acquired by another' => laravel($b)->lock('job', 60)->get();
    yield null;
    yield 'acquired while held' => laravel($c)->lock('job', 60)->get();
    yield 'released' => laravel($b)->restoreLock('job', $one->owner())->release();
    yield 'acquired when released' => laravel($c)->lock('job', 60)->get();
}

function laravel_rate_limiter($a, $b, $c)
{
    $in = function (int $port) {
        $limiter = new Illuminate\Cache\RateLimiter(laravel($port));
        return $limiter->attempt('ada', 2, fn () => 'in', 86400);
    };
    yield 'in' => [$in($a)];
    yield null;
    yield 'in' => [$in($b), $in($c), $in($b)];
    yield 'left' => (new Illuminate\Cache\RateLimiter(laravel($c)))->remaining('ada', 2);
}

function laravel_throttle($a, $b, $c)
{
    $manager = function (int $port) {
        $config = ['default' => ['host' => '127.0.0.1', 'port' => $port, 'database' => 0]];
        return (new Illuminate\Redis\RedisManager(null, 'phpredis', $config))->connection();
    };
    $in = fn ($port) => $manager($port)->throttle('door')->allow(2)->every(86400)->block(0)
        ->then(fn () => 'in', fn () => 'out');
    $funnel = fn ($port) => $manager($port)->funnel('funnel')->limit(1)->releaseAfter(60)->block(0)
        ->then(fn () => 'in', fn () => 'out');
    yield 'throttle' => [$in($a), $in($b)];
    yield null;
    yield 'throttle' => [$in($c), $in($b)];
    yield 'funnel' => [$funnel($b), $funnel($c)];
}

function symfony_lock($a, $b, $c)
{
    $factory = fn ($port) => new Symfony\Component\Lock\LockFactory(
        new Symfony\Component\Lock\Store\RedisStore(client($port), 60)
    );
    $key = new Symfony\Component\Lock\Key('invoice');
    $one = $factory($a)->createLockFromKey($key, 60, false);
    yield 'acquired' => $one->acquire();
    yield 'acquired by another' => $factory($b)->createLock('invoice', 60, false)->acquire();
    yield null;
    yield 'acquired while held' => $factory($c)->createLock('invoice', 60, false)->acquire();
    $again = $factory($b)->createLockFromKey($key, 60, false);
    $again->refresh(30);
    $again->release();
    $other = $factory($c)->createLock('invoice', 60, false);
    yield 'acquired when released' => $other->acquire();
    yield 'read by' => $factory($b)->createLock('book', 60, false)->acquireRead();
    yield 'written by' => $factory($c)->createLock('book', 60, false)->acquire();
}

function predis($a, $b, $c)
{
    $at = fn ($port) => new Predis\Client(['host' => '127.0.0.1', 'port' => $port]);
    yield 'set' => (string) $at($a)->set('p', '1', 'EX', 600);
    yield 'in a transaction' => $at($b)->transaction()->incr('p')->expire('p', 100)->execute();
    yield null;
    yield 'got' => $at($c)->get('p');
    yield 'by a script' => $at($b)->eval("return redis.call('incrby', KEYS[1], ARGV[1])", 1, 'p', 5);
}

$libraries = [
    'phpredis session locking' => 'phpredis_session_locking',
    'Laravel cache' => 'laravel_cache',
    'Laravel lock' => 'laravel_lock',
    'Laravel RateLimiter' => 'laravel_rate_limiter',
    'Laravel throttle, funnel' => 'laravel_throttle',
    'Symfony Lock' => 'symfony_lock',
    'Predis' => 'predis',
];

function half(string $name, Generator $steps): bool
{
    try {
        for (; $steps->valid(); $steps->next()) {
            if (is_int($steps->key())) {
                return true;
            }
            fwrite(STDOUT, "$name: {$steps->key()}: " . json_encode($steps->current()) . "\n");
        }
    } catch (Throwable $error) {
        $why = str_replace("\n", ' ', get_class($error) . ': ' . $error->getMessage());
        fwrite(STDOUT, "$name: failed: $why\n");
        if (getenv('TRACE')) {
            fwrite(STDERR, $error->getTraceAsString() . "\n");
        }
    }
    return false;
}

ob_start();
$names = array_slice($argv, 1) ?: array_keys($libraries);
$going = [];
foreach ($names as $name) {
    $steps = $libraries[$name]($a, $b, $c);
    if (half($name, $steps)) {
        $going[$name] = $steps;
    }
}
fwrite(STDOUT, "half\n");
fgets(STDIN);
foreach ($going as $name => $steps) {
    $steps->next();
    half($name, $steps);
}
fwrite(STDOUT, "end\n");
