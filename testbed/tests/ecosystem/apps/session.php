<?php
// A counter in a PHP session, kept by phpredis as PHP's session handler.
if ($_SERVER['REQUEST_URI'] === '/healthz') {
    echo 'ok';
    return;
}
ini_set('session.save_handler', 'redis');
ini_set('session.save_path', str_replace('redis://', 'tcp://', preg_replace('~/0$~', '', getenv('REDIS_URL'))));
session_start();
switch ($_SERVER['REQUEST_URI']) {
    case '/visit':
        $_SESSION['visits'] = ($_SESSION['visits'] ?? 0) + 1;
        echo $_SESSION['visits'];
        break;
    case '/logout':
        session_destroy();
        echo 'bye';
        break;
    default:
        echo $_SESSION['visits'] ?? 0;
}
