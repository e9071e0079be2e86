# A counter in a Rails session, kept by the stores that come with Rails.

require "action_controller/railtie"
require "redis"
require "puma"
require "puma/configuration"
require "puma/launcher"

class Counter < Rails::Application
  config.load_defaults 6.1
  config.eager_load = false
  config.secret_key_base = "0" * 64
  config.hosts.clear
  config.log_level = :warn
  # By default an error of the store reads as an empty session.
  raises = ->(method:, returning:, exception:) { raise exception }
  config.cache_store = :redis_cache_store, { url: ENV.fetch("REDIS_URL"), error_handler: raises }
  config.session_store :cache_store, key: "_counter", expire_after: 3600
end

class VisitsController < ActionController::Base
  def healthz
    render plain: "ok"
  end

  def visit
    session[:visits] = session.fetch(:visits, 0) + 1
    render plain: session[:visits].to_s
  end

  def peek
    render plain: session.fetch(:visits, 0).to_s
  end

  def logout
    reset_session
    render plain: "bye"
  end
end

Rails.application.initialize!
Rails.application.routes.draw do
  %w[healthz visit peek logout].each { |name| get name, to: "visits##{name}" }
end

configuration = Puma::Configuration.new do |server|
  server.quiet
  server.bind "tcp://127.0.0.1:#{ENV.fetch('PORT')}"
  server.threads 1, 4
  server.app Rails.application
end
Puma::Launcher.new(configuration).run
